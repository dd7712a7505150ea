"""Where batches are kept, as the settings say."""

from __future__ import annotations

from pathlib import Path

import platformdirs

from whisperlib.batches.queue import BatchQueue
from whisperlib.batches.sqlite import SqliteQueue
from whisperlib.errors import BatchStoreError
from whisperlib.settings import Settings


def open_queue(settings: Settings) -> BatchQueue:
    """Open the queue that `WHISPER_BATCHES` names, and queue again what a process had begun that is no more.

    Raises BatchStoreError where it is off, or cannot be used.
    """
    place = settings.batches
    if place == "off":
        raise BatchStoreError("batches are off here: WHISPER_BATCHES would name a directory to keep them in")
    return SqliteQueue(
        _directory(place), alone=True, max_bytes=settings.batch_max_bytes, max_queued=settings.batch_max_queued
    )


def is_used(settings: Settings) -> bool:
    """Whether batches have been kept there before."""
    return settings.batches != "off" and _directory(settings.batches).is_dir()


def _directory(place: str) -> Path:
    return platformdirs.user_state_path("whisperlib", appauthor=False) / "batches" if place == "auto" else Path(place)
