"""Whether a transcript is worth cleaning up."""

from __future__ import annotations

import re
from typing import Literal, get_args

Mode = Literal["never", "auto", "always"]
MODES: tuple[Mode, ...] = get_args(Mode)

SMALL_MODELS = ("micro", "tiny", "base", "small")
_SMALL = re.compile(rf"(?:^|[-_.])(?:{'|'.join(SMALL_MODELS)})(?:[-_.]|$)")


def why_not(mode: Mode, whisper_model: str) -> str | None:
    """Say why the text of this Whisper model is left as it is; None where it is to be cleaned up.

    `auto` takes the small models, by their names or the names of their files: what larger ones get wrong, a language
    model guesses.
    """
    if mode == "never":
        return "it was not asked for"
    if mode == "always" or _SMALL.search(whisper_model.rpartition("/")[2].lower()):
        return None
    return f"auto cleans up after {', '.join(SMALL_MODELS)} only, and the model is {whisper_model}"
