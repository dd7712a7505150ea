"""A transcription as bytes: the SHA-256 of its JSON in hex, a newline, the JSON."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

import pydantic

from whisperlib.results import Transcription

_READER = pydantic.TypeAdapter(Transcription)
_LEFT_OUT = ("timings", "cache")  # those of the request that made it, and of no other


def encode(result: Transcription) -> bytes:
    """Write a result."""
    fields = {name: value for name, value in asdict(result).items() if name not in _LEFT_OUT}
    text = json.dumps(fields, separators=(",", ":")).encode()
    return b"\n".join((_digest(text), text))


def decode(value: bytes) -> Transcription | None:
    """Read a result; None where a byte of it is not as it was written."""
    digest, _, text = value.partition(b"\n")
    if digest != _digest(text):
        return None
    try:
        return _READER.validate_json(text)
    except pydantic.ValidationError:  # written by another version
        return None


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode()
