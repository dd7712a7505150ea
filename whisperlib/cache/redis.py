"""Results in Redis, which forgets what is too old, and what is used least if it is set up to (`maxmemory-policy`)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from whisperlib.cache.store import Stats, Trouble
from whisperlib.errors import OptionError
from whisperlib.settings import without_credentials

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry
except ImportError as _missing:
    raise OptionError(
        "WHISPER_CACHE names a Redis server, and the package redis is not installed: pip install 'whisperlib[redis]'"
    ) from _missing

PREFIX = "whisperlib:result:"
TIMEOUT_SECONDS = 0.5  # of each step: a result that comes later is made in as much time
PAUSE_SECONDS = 5.0  # a server that failed is left alone for so long

_T = TypeVar("_T")


class RedisStore:
    """A store on the server behind `url`, whose entries it drops after `max_age_seconds`.

    `max_bytes` bounds one value; the server bounds them all.
    """

    def __init__(self, url: str, *, max_bytes: int, max_age_seconds: float) -> None:
        self._max_bytes = max_bytes
        self._max_age_milliseconds = max(1, round(max_age_seconds * 1000))
        self._trouble = Trouble(without_credentials(url))
        self._lock = threading.Lock()
        self._paused_until = 0.0
        try:
            self._client: Any = redis.Redis.from_url(
                url,
                socket_timeout=TIMEOUT_SECONDS,
                socket_connect_timeout=TIMEOUT_SECONDS,
                retry=Retry(NoBackoff(), 0),
                client_name="whisperlib",
            )
        except (ValueError, TypeError):  # its message may bear the password
            raise OptionError(f"WHISPER_CACHE = {without_credentials(url)!r}: not a URL of a Redis server") from None

    def get(self, key: str) -> bytes | None:
        """Return what is kept."""
        value: bytes | None = self._ask(lambda: self._client.get(PREFIX + key), None)
        return value

    def put(self, key: str, value: bytes) -> None:
        """Keep a value; one that is larger than the limit is not kept."""
        if len(value) <= self._max_bytes:
            self._ask(lambda: self._client.set(PREFIX + key, value, px=self._max_age_milliseconds), None)

    def touch(self, key: str) -> None:
        """Do nothing: to read a value is what the server counts as its use."""

    def delete(self, key: str) -> None:
        """Forget a value."""
        self._ask(lambda: self._client.delete(PREFIX + key), None)

    def stats(self) -> Stats:
        """Tell nothing of the size: the server has it."""
        return Stats(None, 0)

    def count(self) -> Stats:
        """Tell no more than `stats`."""
        return self.stats()

    def close(self) -> None:
        """Shut the connections."""
        self._client.close()

    def _ask(self, question: Callable[[], _T], otherwise: _T) -> _T:
        with self._lock:
            if time.monotonic() < self._paused_until:
                return otherwise
        try:
            answer = question()
        except Exception as error:  # of the network, the server, or what the URL says of the connection
            with self._lock:
                self._paused_until = time.monotonic() + PAUSE_SECONDS
            self._trouble.failed(error)
            return otherwise
        self._trouble.worked()
        return answer
