"""Works batches off, in threads of its own, as long as it is allowed to."""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

from whisperlib.batches.queue import BatchQueue, Item, ItemState
from whisperlib.errors import BatchStoreError
from whisperlib.options import CancelToken, ProgressCallback

logger = logging.getLogger(__name__)

LEASE_SECONDS = 60.0
RENEW_SECONDS = 20.0
BUSY_SECONDS = 0.2  # to ask again whether an item may be begun
IDLE_SECONDS = 2.0  # to look again for items that are due by now
TROUBLE_SECONDS = 5.0  # to try again where the queue fails
STOP_SECONDS = 5.0  # to end what runs; the model stops within one step
RETRY_SECONDS = (5.0, 30.0, 120.0)  # before each further try of an item whose failure may pass
CRASH_SECONDS = 60.0  # without a begin after a crash: an engine that crashes often is left alone for as long


@dataclass(frozen=True)
class Finished:
    """An item is done."""

    result: str
    audio_seconds: float
    enhancement: str | None = None


@dataclass(frozen=True)
class Failed:
    """An item cannot be done, as `error` says; `transient`: it may be possible later."""

    error: str
    transient: bool = False


@dataclass(frozen=True)
class Postponed:
    """There was no way to do an item now, which tells nothing of it."""

    delay_seconds: float


@dataclass(frozen=True)
class Crashed:
    """The process that had the model ended while an item was in it, which may be the item's doing."""


Verdict: TypeAlias = Finished | Failed | Postponed | Crashed
Work = Callable[[Item, CancelToken, ProgressCallback], Verdict]


@dataclass
class _Running:
    item: Item
    cancel: CancelToken = field(default_factory=CancelToken)
    fraction: float = 0.0

    def set_fraction(self, fraction: float) -> None:
        self.fraction = fraction


class Runner:
    """Works up to `slots` items of `queue` at once, and begins one only while `may_begin` says so of its settings.

    `work` does one item, and never raises; `on_end` is told the state of each that has ended. An item that was running
    when its process ended, this one or the model's, may be what ended it, so it is begun when nothing else runs. What
    has ended `keep_seconds` ago is forgotten.
    """

    def __init__(
        self,
        queue: BatchQueue,
        work: Work,
        *,
        slots: int,
        may_begin: Callable[[str], bool],
        on_end: Callable[[ItemState], object],
        keep_seconds: float,
    ) -> None:
        self._queue = queue
        self._work = work
        self._may_begin = may_begin
        self._on_end = on_end
        self._keep_seconds = keep_seconds
        self._owner = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._claiming = threading.Lock()  # while an item is taken, which no other thread may do beside it
        self._changed = threading.Condition()  # for what is below; nobody waits for the queue while he has it
        self._stopping = False
        self._news = 0  # what could be a reason to look again
        self._running: dict[str, _Running] = {}
        self._alone = False
        self._rests_until = 0.0
        self._failing = False
        names = [*((f"batch-{number}", self._run) for number in range(slots)), ("batch-leases", self._keep_up)]
        self._threads = [threading.Thread(target=target, name=name, daemon=True) for name, target in names]
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """Look for items at once."""
        with self._changed:
            self._tell()

    def check_leases(self) -> None:
        """Renew the leases of what runs, and stop what has none any more. Raises BatchStoreError."""
        with self._claiming, self._changed:  # none is between its claim and its place among these
            running = list(self._running.values())
        lost = {item.token for item in self._queue.renew([one.item for one in running], LEASE_SECONDS)}
        for one in running:
            if one.item.token in lost:
                one.cancel.cancel()

    def progress(self, batch_id: str) -> float:
        """Tell how much of a batch's running items is done, in items."""
        with self._changed:
            return sum(one.fraction for one in self._running.values() if one.item.batch_id == batch_id)

    def stop(self) -> None:
        """Begin nothing more, stop what runs and give it back to the queue. Again: nothing happens."""
        with self._changed:
            self._stopping = True
            running = list(self._running.values())
            self._changed.notify_all()
        for one in running:
            one.cancel.cancel()
        deadline = time.monotonic() + STOP_SECONDS
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0.0))

    def _run(self) -> None:
        while not self._stopping:
            with self._trouble():
                if one := self._begin():
                    try:
                        self._do(one)
                    finally:
                        self._end(one)

    def _begin(self) -> _Running | None:
        """Take an item; wait for a while where there is none, or it may not be begun."""
        with self._changed:
            news = self._news
        with self._claiming:
            one, idle_seconds = self._claim()
        if one is None:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._news != news, idle_seconds)
        return one

    def _claim(self) -> tuple[_Running | None, float]:
        """Take an item; where there is none, tell in how many seconds to look again."""
        with self._changed:
            if self._alone or time.monotonic() < self._rests_until:
                return None, BUSY_SECONDS
            untried = bool(self._running)
        wanted = self._queue.open_settings()
        free = [settings for settings in wanted if self._may_begin(settings)]
        item = self._queue.claim(self._owner, LEASE_SECONDS, untried=untried, settings=free) if free else None
        if item is None:
            return None, IDLE_SECONDS if len(free) == len(wanted) else BUSY_SECONDS
        one = _Running(item)
        with self._changed:
            if not self._stopping:
                self._running[item.token] = one
                self._alone = item.attempts > 1
                return one, 0.0
        self._queue.release(item)
        return None, 0.0

    def _do(self, one: _Running) -> None:
        verdict = self._work(one.item, one.cancel, one.set_fraction)
        one.fraction = 0.0  # it counts as a whole item as soon as it has ended
        if isinstance(verdict, Crashed):
            self._rests_until = time.monotonic() + CRASH_SECONDS
        while True:  # what was worked out is not lost because a disk is full
            with self._trouble():
                self._settle(one, verdict)
                return
            if self._stopping:
                return

    def _settle(self, one: _Running, verdict: Verdict) -> None:
        """Write what became of an item."""
        item = one.item
        if isinstance(verdict, Finished):
            if self._queue.finish(item, verdict.result, verdict.audio_seconds, verdict.enhancement):
                self._on_end("done")
        elif one.cancel.cancelled:
            self._queue.release(item)
        elif isinstance(verdict, Postponed):
            self._queue.release(item, verdict.delay_seconds)
        elif isinstance(verdict, Crashed):
            self._queue.abandon(item)
        elif verdict.transient and item.retries < len(RETRY_SECONDS):
            self._queue.retry(item, RETRY_SECONDS[item.retries])
        elif self._queue.fail(item, verdict.error):
            self._on_end("failed")

    def _end(self, one: _Running) -> None:
        with self._changed:
            del self._running[one.item.token]
            self._alone = False
            self._tell()

    def _tell(self) -> None:
        self._news += 1
        self._changed.notify_all()

    def _keep_up(self) -> None:
        """Renew leases, and forget what is old."""
        while not self._stopping:
            with self._trouble():
                self.check_leases()
                self._queue.forget_finished(self._keep_seconds)
                with self._changed:
                    self._changed.wait_for(lambda: self._stopping, RENEW_SECONDS)

    @contextmanager
    def _trouble(self) -> Iterator[None]:
        """Log what goes wrong, that the queue fails once until it works again, and wait before the next try."""
        try:
            yield
            self._failing = False
            return
        except BatchStoreError as error:
            if not self._failing and not self._stopping:
                logger.warning("batches wait: %s", error)
            self._failing = True
        except Exception:  # it shall not end the thread
            logger.exception("batches wait for a moment")
        with self._changed:
            self._changed.wait_for(lambda: self._stopping, TROUBLE_SECONDS)
