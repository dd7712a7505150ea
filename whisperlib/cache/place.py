"""Where results are kept, as the settings say."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

from whisperlib.cache.files import PRIVATE, FileStore
from whisperlib.cache.store import Stats, Store
from whisperlib.settings import Settings, user_cache_path, without_credentials

logger = logging.getLogger(__name__)


def for_server(settings: Settings) -> Settings:
    """Return what a server goes by: `auto` is decided, for `files` where they can be written, else for `off`.

    Only a default gives way, with a warning; a place that is named stays. Says in the log where results are kept.
    """
    if settings.cache != "auto":
        return settings
    directory = _directory(settings)
    try:
        directory.mkdir(PRIVATE, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        logger.warning(
            "results are not kept, as %s cannot be written (%s): XDG_CACHE_HOME or WHISPER_CACHE would name another "
            "place, WHISPER_CACHE=off none",
            directory,
            error.strerror,
        )
        return settings.model_copy(update={"cache": "off"})
    logger.info(
        "results are kept in %s, for %d s and in %d bytes at most; WHISPER_CACHE=off keeps none",
        directory,
        settings.cache_seconds,
        settings.cache_bytes,
    )
    return settings.model_copy(update={"cache": "files"})


def open_store(settings: Settings) -> Store | None:
    """Return the store that `WHISPER_CACHE` names; None where it is off, or `auto`, which is for servers.

    Raises OptionError where it is Redis and its package is not installed. Whether it is reachable shows later.
    """
    return None if settings.cache == "auto" else _open(settings)


def describe(settings: Settings, stats: Stats | None) -> dict[str, Any]:
    """Return where results are kept, without a password, and what they take and may take there, ready for JSON.

    All of it is None where nothing is kept, and what the place itself knows alone: the size and its limit in Redis.
    `auto` is the place of a server.
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
    """Tell how full the place is that `describe` tells of. Raises OptionError as `open_store` does."""
    store = _open(settings)
    if store is None:
        return None
    try:
        return store.count()
    finally:
        store.close()


def _open(settings: Settings) -> Store | None:
    if settings.cache == "off":
        return None
    if _is_redis(settings):
        from whisperlib.cache.redis import RedisStore  # noqa: PLC0415  (an extra package)

        return RedisStore(settings.cache, max_bytes=settings.cache_bytes, max_age_seconds=settings.cache_seconds)
    return FileStore(_directory(settings), max_bytes=settings.cache_bytes, max_age_seconds=settings.cache_seconds)


def _is_redis(settings: Settings) -> bool:
    return "://" in settings.cache


def _directory(settings: Settings) -> Path:
    named = settings.cache not in {"auto", "files"}
    return (Path(settings.cache) if named else user_cache_path()) / "results"
