"""A request on its way: waiting in the engine's queue, running in one of its threads, or done."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from types import TracebackType
from typing import Generic, TypeVar

from whisperlib.errors import InterruptedTranscription, TranscriptionCancelled
from whisperlib.interrupt import Interrupt
from whisperlib.results import CacheUse, Segment, Transcription

T = TypeVar("T")


class Job(Generic[T]):
    """The future of one request, which a cancel or a deadline also ends while it is still queued.

    `when_interrupted` then gives the result, or raises. `cache` is where the result will come from.
    """

    def __init__(
        self,
        future: Future[T],
        interrupt: Interrupt,
        when_interrupted: Callable[[InterruptedTranscription], T],
        cache: CacheUse = "off",
    ) -> None:
        self.cache = cache
        self.future = future
        self.interrupt = interrupt
        self._when_interrupted = when_interrupted
        self._done = done = threading.Event()  # futures.wait() would sleep on through a cancel in the queue
        future.add_done_callback(lambda _: done.set())  # without this object, which has the request's audio
        if token := interrupt.token:
            # Takes it out of the queue; a running one sees the token itself.
            token.add_listener(future.cancel)
            future.add_done_callback(lambda _: token.remove_listener(future.cancel))

    def result(self) -> T:
        """Wait and return the result, or raise what ended the request."""
        try:
            if not self._done.wait(self.interrupt.remaining_seconds()):
                self.future.cancel()  # if it is still queued; a running one sees its deadline itself
            return self.future.result()
        except CancelledError:
            return self._when_interrupted(self.interrupt.reason() or TranscriptionCancelled("taken from the queue"))
        except BaseException:
            self.interrupt.abandon()
            raise


class TranscriptionStream:
    """Segments of a running request, in order, each as soon as it is settled.

    Iterate, then read `result`. Closing it (`close`, `with`, or dropping it) stops the request.
    """

    def __init__(self, job: Job[Transcription], segments: queue.SimpleQueue[Segment | None]) -> None:
        self._job = job
        self._segments = segments
        job.future.add_done_callback(lambda _: segments.put(None))
        self._finalizer = weakref.finalize(self, job.interrupt.abandon)

    def __iter__(self) -> Iterator[Segment]:
        return self

    def __next__(self) -> Segment:
        segment = self._get()
        if segment is None:
            self._segments.put(None)  # iterating again ends again
            self._job.result()
            raise StopIteration
        return segment

    def _get(self) -> Segment | None:
        try:
            return self._segments.get(timeout=self._job.interrupt.remaining_seconds())
        except queue.Empty:
            self._job.future.cancel()  # if it is still queued; a running one sees its deadline itself
            return self._segments.get()

    @property
    def result(self) -> Transcription:
        """The whole transcription; waits for its end. Raises what `transcribe` would."""
        return self._job.result()

    @property
    def cache(self) -> CacheUse:
        """Where the result will come from, as far as it was known at the start.

        What is "shared" then is made here after all if the other request is stopped; the result's own `cache` tells.
        """
        return self._job.cache

    def close(self) -> None:
        """Stop the request, within one encoder or decoder step. After its end: nothing happens."""
        self._finalizer()
        self._job.future.cancel()

    def __enter__(self) -> TranscriptionStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
