"""A transcription as bytes: the SHA-256 of its JSON in hex, a newline, the JSON."""

from __future__ import annotations

import hashlib

import pydantic

from whisperlib.results import Transcription

_JSON = pydantic.TypeAdapter(Transcription)
_LEFT_OUT = {"timings", "cache"}  # those of the request that made it, and of no other


def encode(result: Transcription) -> bytes:
    """Write a result."""
    text = _JSON.dump_json(result, exclude=_LEFT_OUT)
    return b"\n".join((_digest(text), text))


def decode(value: bytes) -> Transcription | None:
    """Read a result; None where a byte of it is not as it was written."""
    digest, _, text = value.partition(b"\n")
    if digest != _digest(text):
        return None
    try:
        return _JSON.validate_json(text)
    except pydantic.ValidationError:  # written by another version
        return None


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode()
