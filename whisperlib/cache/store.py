"""What a place for results must do, and how it says that it cannot."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Protocol

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stats:
    """How full a store is, in bytes as far as this process knows, None where it does not; what it threw out."""

    size_bytes: int | None
    evictions: int


class Store(Protocol):
    """Bytes under keys of 64 hex digits. Safe to use from many threads, and by many processes at once.

    A store that cannot be reached, is full or damaged never raises: what is not there is a miss.
    """

    def get(self, key: str) -> bytes | None:
        """Return what is kept, None where nothing is, or it is too old."""

    def put(self, key: str, value: bytes) -> None:
        """Keep `value`, in place of an earlier one."""

    def touch(self, key: str) -> None:
        """Note that it was used: what was not used for longest is thrown out first."""

    def delete(self, key: str) -> None:
        """Forget it."""

    def stats(self) -> Stats:
        """Tell how full it is, without asking anybody."""

    def count(self) -> Stats:
        """Tell how full it is now, if that can be counted, whoever wrote there."""

    def close(self) -> None:
        """Give back connections. Again: nothing happens."""


class Trouble:
    """Says in the log that a store fails, once until it works again."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._lock = threading.Lock()
        self._failing = False

    def failed(self, error: BaseException) -> None:
        """Note a failure."""
        with self._lock:
            first, self._failing = not self._failing, True
        if first:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
            logger.warning("results are not cached in %s: %s", self._place, reason)

    def worked(self) -> None:
        """Note a success."""
        with self._lock:
            again, self._failing = self._failing, False
        if again:
            logger.info("results are cached in %s again", self._place)
