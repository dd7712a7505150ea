"""Results that are remembered for a while, in this process's memory only, for whoever has their ids.

The result cache is another thing: it finds a result by what was asked, and spares the work; this one by an id that
nobody but its client was told.
"""

from __future__ import annotations

import pickle
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from cachetools import TTLCache
from flask import Flask, current_app

from whisperlib.enhance import Enhancement
from whisperlib.web import metrics
from whisperlib.web.errors import ApiError
from whisperlib.web.running import Outcome
from whisperlib.web.service import EXTENSION as SERVICE
from whisperlib.web.service import Service

EXTENSION = "whisper_kept_results"  # its place in `Flask.extensions`

ID_BYTES = 16
MAX_BYTES = 64 << 20  # of all results; an hour of speech with its words takes about one MiB


@dataclass(frozen=True)
class KeptResult:
    """A result, whether its words were asked for, and the clean-up of its text, if there was one."""

    id: str
    outcome: Outcome
    words: bool
    enhancement: Enhancement | None


@dataclass
class _Entry:
    """What the cache holds: the outcome as bytes, which take a fraction of its objects' memory and can be counted."""

    outcome: bytes
    words: bool
    enhancement: Enhancement | None

    def size_bytes(self) -> int:
        return len(self.outcome)


class KeptResults:
    """Keeps up to `max_results` results, and `max_bytes` of them, each for `seconds`; 0 keeps none.

    Where there is no room, those that nobody asked for for longest go first. `timer` tells seconds. Safe to use from
    many threads.
    """

    def __init__(
        self,
        max_results: int,
        seconds: float,
        *,
        max_bytes: int = MAX_BYTES,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_results = max_results
        self._seconds = seconds
        self._entries: TTLCache[str, _Entry] = TTLCache(max_bytes, seconds, timer, _Entry.size_bytes)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        with self._lock:
            return len(self._entries)

    def add(self, outcome: Outcome, *, words: bool = False, enhancement: Enhancement | None = None) -> str | None:
        """Keep a result; return its id, which nobody can guess, or None where it is not kept."""
        if not self._max_results or not self._seconds:
            return None
        entry = _Entry(pickle.dumps(outcome), words, enhancement)
        if entry.size_bytes() > self._entries.maxsize:
            return None
        new_id = secrets.token_hex(ID_BYTES)
        with self._lock:
            while len(self._entries) >= self._max_results:
                self._entries.popitem()
            self._entries[new_id] = entry
        return new_id

    def get(self, wanted_id: str) -> KeptResult:
        """Return a result. Raises ApiError with status 404 where it is not kept, or not any more."""
        with self._lock:
            entry = self._entries.get(wanted_id)
        if entry is None:
            raise self._none()
        outcome: Outcome = pickle.loads(entry.outcome)  # noqa: S301  (written here)
        return KeptResult(wanted_id, outcome, entry.words, entry.enhancement)

    def enhance(self, kept_id: str, enhancement: Enhancement) -> None:
        """Keep the clean-up of a result with it, unless there is a text already and this one failed.

        A result that is not kept any more stays forgotten; how long it is kept does not change.
        """
        with self._lock:
            entry = self._entries.get(kept_id)
            if entry and (enhancement.text is not None or entry.enhancement is None or entry.enhancement.text is None):
                entry.enhancement = enhancement

    def forget(self, kept_id: str) -> None:
        """Drop a result. Raises as `get` does."""
        with self._lock:
            if self._entries.pop(kept_id, None) is None:
                raise self._none()

    def _none(self) -> ApiError:
        if self._max_results and self._seconds:
            why = (
                f"results are kept for {self._seconds:g} s (WHISPER_KEEP_RESULTS_SECONDS), {self._max_results} at most "
                "(WHISPER_KEEP_RESULTS_MAX), and no longer than the server runs"
            )
        else:
            why = "this server keeps none: WHISPER_KEEP_RESULTS_SECONDS or WHISPER_KEEP_RESULTS_MAX is 0"
        return ApiError(404, f"there is no result with this id: {why}", code="transcription_not_found")


def register(app: Flask) -> None:
    """Give `app` the place that its settings describe, and have /metrics tell of it."""
    service: Service = app.extensions[SERVICE]
    kept = KeptResults(service.settings.keep_results_max, service.settings.keep_results_seconds)
    app.extensions[EXTENSION] = kept
    told: metrics.Metrics = app.extensions[metrics.EXTENSION]
    told.kept_results.set_function(lambda: len(kept))


def current() -> KeptResults:
    """Return the results of the app that handles the request."""
    kept: KeptResults = current_app.extensions[EXTENSION]
    return kept
