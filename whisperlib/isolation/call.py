"""A request that another process works on, as the caller's process sees it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from dataclasses import replace
from typing import Any

from whisperlib.isolation.messages import Done, Event, Failed, Progressed, Queued, Settled
from whisperlib.options import ProgressCallback
from whisperlib.results import CacheUse, Segment, Transcription, join


class Call:
    """Takes what is said of one request, in order, and hands it on to the caller.

    `queued` is done when it is in the other process's queue, `future` at its end. `abandon` stops it: it is called
    where `progress` raises, which is then how the request ends.
    """

    def __init__(
        self,
        on_segment: Callable[[Segment], None] | None = None,
        progress: ProgressCallback | None = None,
        abandon: Callable[[], object] = lambda: None,
    ) -> None:
        self.future: Future[Any] = Future()
        self.future.set_running_or_notify_cancel()  # only the other process ends it
        self.queued: Future[CacheUse] = Future()
        self.context = copy_context()  # of who asked: what is logged for it bears its request id
        self._on_segment = on_segment
        self._progress = progress
        self._abandon = abandon
        self._segments: list[Segment] = []
        self._error: BaseException | None = None
        self._events: queue.SimpleQueue[Event] | None = None
        if progress:  # the caller's own code, which may take its time: nobody else shall wait for it
            self._events = queue.SimpleQueue()
            work = self.context.copy().run
            threading.Thread(target=work, args=(self._hand_on_all, self._events), name="progress", daemon=True).start()

    def take(self, event: Event) -> None:
        """Hand on what was said. Takes no time."""
        if self._events:
            self._events.put(event)
        else:
            self._hand_on(event)

    def _hand_on_all(self, events: queue.SimpleQueue[Event]) -> None:
        while not self.future.done():
            self._hand_on(events.get())

    def _hand_on(self, event: Event) -> None:
        match event:
            case Queued():
                self.queued.set_result(event.cache)
            case Settled():
                self._segments.append(event.segment)
                if self._on_segment:
                    self._on_segment(event.segment)
            case Progressed():
                self._report(event.fraction)
            case Done():
                self._end(self._whole(event.result), self._error)
            case Failed():
                self._end(None, self._error or event.error)

    def _whole(self, result: Any) -> Any:
        if not isinstance(result, Transcription):
            return result
        return replace(result, text=join(self._segments), segments=tuple(self._segments))

    def _report(self, fraction: float) -> None:
        if self._progress and not self._error:
            try:
                self._progress(fraction)
            except BaseException as error:
                self._error = error
                self._abandon()

    def _end(self, result: Any, error: BaseException | None) -> None:
        queued = self.queued.done()
        if error is None:
            if not queued:
                self.queued.set_result("off")
            self.future.set_result(result)
        else:
            if not queued:
                self.queued.set_exception(error)
            self.future.set_exception(error)
