"""Turns what the C functions return on failure into exceptions: the `errcheck` hooks of the prototypes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from whisperlib.binding import log
from whisperlib.errors import EngineError, ModelFileError, OutOfMemoryError

OUT_OF_MEMORY = -7
MEANINGS = {
    -2: "the log-mel spectrogram could not be computed",
    -3: "the language could not be detected",
    -4: "too many decoders were asked for",
    -5: "audio_ctx is larger than the model's",
    -6: "the encoder failed or was stopped",
    OUT_OF_MEMORY: "memory for the decoders could not be allocated",
    -8: "the decoder failed or was stopped at the prompt",
    -9: "the decoder failed or was stopped",
}

# What the shim returns for an exception that it caught.
THROWN_OUT_OF_MEMORY = -100
THROWN = {THROWN_OUT_OF_MEMORY: "memory ended", -101: "it threw an exception"}

ErrCheck = Callable[[Any, Any, tuple[Any, ...]], Any]


def status(function: str, meanings: dict[int, str] | None = None) -> ErrCheck:
    """Raise EngineError for a negative status; OutOfMemoryError for -100, and for -7 with whisper_full's `meanings`."""
    table = (MEANINGS if meanings is None else meanings) | THROWN
    out_of_memory = {THROWN_OUT_OF_MEMORY, OUT_OF_MEMORY} if meanings is None else {THROWN_OUT_OF_MEMORY}

    def check(result: int, _function: Any, _arguments: tuple[Any, ...]) -> int:
        if result >= 0:
            return result
        error = OutOfMemoryError if result in out_of_memory else EngineError
        raise error(f"{function} failed with {result}: {table.get(result, 'unknown failure')}{_reason()}", result)

    return check


def pointer(what: str, error: type[EngineError] | type[ModelFileError]) -> ErrCheck:
    """Raise `error` for a NULL pointer."""

    def check(result: int | None, _function: Any, _arguments: tuple[Any, ...]) -> int:
        if not result:
            raise error(f"{what}{_reason()}")
        return result

    return check


def truth(what: str) -> ErrCheck:
    """Raise EngineError for false."""

    def check(result: bool, _function: Any, _arguments: tuple[Any, ...]) -> bool:
        if not result:
            raise EngineError(f"{what}{_reason()}")
        return result

    return check


def _reason() -> str:
    reason = log.recent_errors()
    log.forget_errors()
    return f" ({reason})" if reason else ""
