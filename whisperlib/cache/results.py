"""The cache as the adapter uses it: key, store and single flight of transcriptions."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from typing import TypeAlias

from whisperlib.cache import value
from whisperlib.cache.flight import Flights, Passenger
from whisperlib.cache.key import Engine, make_key
from whisperlib.cache.store import Stats, Store
from whisperlib.errors import AudioError, OptionError, TranscriptionCancelled
from whisperlib.request import Request
from whisperlib.results import CacheUse, Timings, Transcription

logger = logging.getLogger(__name__)

Wrap: TypeAlias = Callable[[Callable[[], Transcription]], Transcription]
Queue: TypeAlias = Callable[[Wrap, bool], "Future[Transcription]"]


class ResultCache:
    """Finished transcriptions of one adapter, in a store that others may share. Safe to use from many threads."""

    def __init__(self, store: Store, engine: Engine) -> None:
        self._store = store
        self._flights = Flights[Transcription](self._find, self._keep, _is_final)
        # A large model takes seconds to hash, which the first request need not wait for.
        with_model = ThreadPoolExecutor(1, thread_name_prefix="whisper-checksum")
        self._fingerprint = with_model.submit(engine.fingerprint)
        with_model.shutdown(wait=False)

    def start(self, request: Request, queue: Queue) -> tuple[Future[Transcription], CacheUse]:
        """Have `request` answered: by the store, by another request for the same, or by its own work.

        Only one of the background waits for another of the background.
        `queue` puts it into the scheduler: it is given what to call around the run, and whether a wait that is too
        long is still to be refused. Returns the future, and what can be said by now. Raises what `queue` raises.
        """
        key = self._key(request)
        if key is None or request.interrupt.reason():
            return queue(lambda run: run(), True), "off"
        passenger: Passenger[Transcription]

        def run_own(run: Callable[[], Transcription]) -> Transcription:
            if not passenger.future.set_running_or_notify_cancel():
                raise TranscriptionCancelled("the request was cancelled")
            return replace(run(), cache="miss")

        passenger = Passenger(
            work=lambda first: queue(run_own, first),
            receive=lambda result: _hand_out(request, result),
            context=copy_context(),
            background=request.options.background,
        )
        if self._flights.start(key, passenger):
            return passenger.future, "shared"
        return passenger.future, "hit" if _was_found(passenger.future) else "miss"

    def stats(self) -> Stats:
        """Tell how full the store is."""
        return self._store.stats()

    def close(self) -> None:
        """Give back what the store holds."""
        self._store.close()

    def _key(self, request: Request) -> str | None:
        try:
            fingerprint = self._fingerprint.result()
        except OSError as error:
            logger.warning("results are not cached: the model's file cannot be read: %s", error)
            return None
        return make_key(
            fingerprint, request.samples, request.options, duration=request.duration, threads=request.threads
        )

    def _find(self, key: str) -> Transcription | None:
        kept = self._store.get(key)
        if kept is None:
            return None
        result = value.decode(kept)
        if result is None:
            logger.warning("a cached result was damaged: it is made anew")
            self._store.delete(key)
            return None
        self._store.touch(key)
        return replace(result, cache="hit")

    def _keep(self, key: str, result: Transcription) -> None:
        self._store.put(key, value.encode(result))


def _is_final(ended: Future[Transcription]) -> bool:
    """Whether it ended as every request for the same would: whole, or with what is wrong in what was asked."""
    if ended.cancelled():
        return False
    if error := ended.exception():
        return isinstance(error, (AudioError, OptionError))
    return ended.result().complete


def _was_found(future: Future[Transcription]) -> bool:
    return future.done() and not future.cancelled() and not future.exception() and future.result().cache == "hit"


def _hand_out(request: Request, result: Transcription) -> Transcription:
    """Make a result that somebody else made this request's own, and give out its segments."""
    found = result.cache == "hit"
    waited = 0.0 if found else time.monotonic() - request.submitted
    own = replace(
        result,
        model=request.model,
        timings=Timings(decode=request.decode_seconds, queue=waited),
        cache="hit" if found else "shared",
    )
    if request.on_segment:
        for segment in own.segments:
            request.on_segment(segment)
    if request.options.progress:
        request.options.progress(1.0)
    return own
