"""What the makers of model files share: one at a time, whole files only, checksums."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from whisperlib.errors import DownloadError

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20

Progress = Callable[[int, int], None]
"""Called with the bytes that are there and the bytes in all."""


@contextmanager
def exclusive(target: Path) -> Iterator[None]:
    """Let one thread of one process at a time make `target`; the others wait here.

    The lock file stays: to delete it would let two in. Raises DownloadError where it cannot be made.
    """
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(target.with_name(f".{target.name}.lock"))
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            logger.info("another process is at work on %s: waiting", target)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Turn a failure of the disk into a DownloadError."""
    try:
        yield
    except OSError as error:
        raise DownloadError(
            f"{target} cannot be written: {error.strerror or error}: make room, or set WHISPER_MODEL_ROOT"
        ) from error


def check_space(directory: Path, needed: int) -> None:
    """Raise DownloadError where the disk of `directory` has fewer than `needed` bytes free."""
    with disk_errors(directory):
        free = shutil.disk_usage(directory).free
    if free < needed:
        raise DownloadError(
            f"{directory} has {free / 1e6:,.0f} MB free of the {needed / 1e6:,.0f} MB needed: "
            "make room, or set WHISPER_MODEL_ROOT"
        )


def sha256_of(path: Path) -> str:
    """Hash a file; returns hex. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
