"""Where results are kept, as the settings say."""

from __future__ import annotations

from pathlib import Path

import platformdirs

from whisperlib.cache.files import FileStore
from whisperlib.cache.store import Store
from whisperlib.settings import Settings


def open_store(settings: Settings) -> Store | None:
    """Return the store that `WHISPER_CACHE` names; None where it is off.

    Raises OptionError where it is Redis and its package is not installed. Whether it is reachable shows later.
    """
    place = settings.cache
    if place == "off":
        return None
    if "://" in place:
        from whisperlib.cache.redis import RedisStore  # noqa: PLC0415  (an extra package)

        return RedisStore(place, max_bytes=settings.cache_bytes, max_age_seconds=settings.cache_seconds)
    directory = platformdirs.user_cache_path("whisperlib", appauthor=False) if place == "files" else Path(place)
    return FileStore(directory / "results", max_bytes=settings.cache_bytes, max_age_seconds=settings.cache_seconds)
