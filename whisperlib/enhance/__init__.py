"""Clean-up of a transcript by a language model on any server that speaks OpenAI's chat API.

    enhancer = Enhancer.from_settings(get_settings())      # None where WHISPER_LLM_BASE_URL is not set
    enhancement = enhancer.enhance(result.text, result.language)

Nothing that the language model does raises: an `Enhancement` says what came of it, and the transcript stays as it was.
"""

from __future__ import annotations

from whisperlib.enhance.client import LanguageModel
from whisperlib.enhance.enhancer import Enhancement, Enhancer, Status
from whisperlib.enhance.policy import MODES, Mode, why_not
from whisperlib.enhance.where import describe, log_where

__all__ = [
    "MODES",
    "Enhancement",
    "Enhancer",
    "LanguageModel",
    "Mode",
    "Status",
    "describe",
    "log_where",
    "why_not",
]
