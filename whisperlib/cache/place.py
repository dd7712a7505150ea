"""Where results are kept, as the settings say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import platformdirs

from whisperlib.cache.files import FileStore
from whisperlib.cache.store import Stats, Store
from whisperlib.settings import Settings, without_credentials


def open_store(settings: Settings) -> Store | None:
    """Return the store that `WHISPER_CACHE` names; None where it is off.

    Raises OptionError where it is Redis and its package is not installed. Whether it is reachable shows later.
    """
    if settings.cache == "off":
        return None
    if _is_redis(settings):
        from whisperlib.cache.redis import RedisStore  # noqa: PLC0415  (an extra package)

        return RedisStore(settings.cache, max_bytes=settings.cache_bytes, max_age_seconds=settings.cache_seconds)
    return FileStore(_directory(settings), max_bytes=settings.cache_bytes, max_age_seconds=settings.cache_seconds)


def describe(settings: Settings, stats: Stats | None) -> dict[str, Any]:
    """Return where results are kept, without a password, and what they take and may take there, ready for JSON.

    All of it is None where nothing is kept, and what the place itself knows alone: the size and its limit in Redis.
    """
    if settings.cache == "off":
        return {"place": None, "size_bytes": None, "max_bytes": None, "max_age_seconds": None}
    redis = _is_redis(settings)
    return {
        "place": without_credentials(settings.cache) if redis else str(_directory(settings)),
        "size_bytes": stats.size_bytes if stats else None,
        "max_bytes": None if redis else settings.cache_bytes,
        "max_age_seconds": settings.cache_seconds,
    }


def count(settings: Settings) -> Stats | None:
    """Tell how full the store is that `WHISPER_CACHE` names. Raises as `open_store` does."""
    store = open_store(settings)
    if store is None:
        return None
    try:
        return store.count()
    finally:
        store.close()


def _is_redis(settings: Settings) -> bool:
    return "://" in settings.cache


def _directory(settings: Settings) -> Path:
    place = settings.cache
    directory = platformdirs.user_cache_path("whisperlib", appauthor=False) if place == "files" else Path(place)
    return directory / "results"
