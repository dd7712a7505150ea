"""The recipe of the bundled micro model: a Whisper of 4 MB of parameters that knows a closed grammar.

See README.md in this folder; docs/micro-model.md is the model's card.
"""
