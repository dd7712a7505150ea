"""The name of a result: a SHA-256 of all that it depends on."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from whisperlib.models.disk import sha256_of
from whisperlib.options import TranscribeOptions
from whisperlib.pcm import Samples

FORMAT = 1  # another number makes all results anew
# They say when a request stops, who hears of it, and what was merged into the others already.
WITHOUT_EFFECT = frozenset(
    {
        "background",
        "cache",
        "cancel",
        "max_wait_seconds",
        "on_interrupt",
        "profile",
        "progress",
        "threads",
        "timeout_seconds",
    }
)


@dataclass(frozen=True)
class Engine:
    """What transcribes: the model's file; device, encoder and build of the libraries, as `facts`."""

    model: Path
    facts: tuple[str, ...]

    def fingerprint(self) -> str:
        """Return a hash of all of it. The model's file is read once as long as it stays as it is. Raises OSError."""
        status = self.model.stat()
        checksum = _checksum(self.model, status.st_size, status.st_mtime_ns)
        facts = [FORMAT, checksum, *self.facts, _version("whisperlib"), _version("openvino")]
        return hashlib.sha256(_line(facts)).hexdigest()


def make_key(fingerprint: str, samples: Samples, options: TranscribeOptions, *, duration: float, threads: int) -> str:
    """Return 64 hex digits.

    `samples`: float32, shape (n,), what is transcribed; `options` with their profile's defaults; `duration` of the
    whole audio, seconds; `threads` that it runs with, as sums may depend on them.
    """
    chosen = options.model_dump(mode="json", exclude=set(WITHOUT_EFFECT))
    digest = hashlib.sha256(_line([fingerprint, chosen, duration, threads, len(samples)]))
    digest.update(np.ascontiguousarray(samples, np.float32).data)
    return digest.hexdigest()


def _line(facts: list[Any]) -> bytes:
    return json.dumps(facts, sort_keys=True).encode() + b"\n"


@functools.lru_cache(maxsize=64)
def _checksum(path: Path, _size_bytes: int, _modified_ns: int) -> str:
    return sha256_of(path)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
