"""Who runs next: a fixed number of slots, two lanes that share them fairly, and one for what can wait.

Requests of up to `short_seconds` of audio have a lane of their own. Each lane counts the seconds of audio that it was
served; a free slot goes to the lane that had less, so that under load both get half, and neither waits for ever.
A long request asks before each of its windows whether a short one is due; if so it pauses and lends its slot. Hence
a short clip waits for one window of an hour-long file, not for the file.

Background requests have a third lane. It gets the slots that the others and their helpers leave, and gives them back
before its next window as soon as one of the others waits, so that it takes nothing from them but that window.

A request may have helpers: parts of its work that slots do which nobody else wants. Each is one window long, so that
whoever comes has the slot after it.

The lanes are start-time fair queueing (Goyal, Vin and Cheng, 1996) with two flows of equal weight.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any, TypeVar

from whisperlib.errors import ClosedError, EngineError, OverloadedError
from whisperlib.interrupt import Interrupt

T = TypeVar("T")

WINDOW_SECONDS = 30.0  # the encoder's window: what a request is billed in, and where a long one can pause
LINGER_SECONDS = 0.005  # from the last result to the tidying: the cores are for those who waited, and who asks next
_MEMORY = 0.9  # how much of the past each new measurement of the real-time factor leaves


@dataclass(frozen=True, slots=True)
class Workload:
    """What an engine has before it.

    `queued_audio_seconds` is the audio that is still to be transcribed, of running requests too;
    `real_time_factor` the measured seconds of one slot per second of audio; `wait_seconds` the predicted wait of a
    short request that comes now.
    """

    running: int
    waiting: int
    queued_audio_seconds: float
    real_time_factor: float
    wait_seconds: float


@dataclass(eq=False)
class Turn:
    """One request's place in the scheduler, and what it calls while it runs. Costs are seconds of audio."""

    scheduler: Scheduler
    lane: _Lane
    future: Future[Any]
    work: Callable[[Turn], Any]
    interrupt: Interrupt
    cost: float
    windows: int = 0
    helps: Turn | None = None  # whose work it does, where it is a helper
    helpers: int = 0  # that run for it
    helped_seconds: float = 0.0  # slots' time that helpers took
    started: float | None = None  # the clock when it first held a slot
    paused_seconds: float = 0.0
    holds_slot: bool = False
    context: Context = field(default_factory=copy_context)  # who asked: what is logged for it bears its request id

    def set_audio_seconds(self, seconds: float) -> None:
        """Correct the cost once it is known how much of the audio is speech."""
        self.scheduler._set_cost(self, _billed(seconds))

    def window(self) -> None:
        """Begin another window: a long request lends its slot first where a short one is due."""
        self.scheduler._begin_window(self)

    def add_helper(self, work: Callable[[Turn], object]) -> None:
        """Have a window's `work` called beside this turn, with a turn of its own, if a slot is free that nobody wants.

        An exception in it is lost. `dismiss_helpers` must follow.
        """
        self.scheduler._add_helper(self, work)

    def dismiss_helpers(self) -> None:
        """Take back the helpers that have not begun, and wait for those that run."""
        self.scheduler._dismiss_helpers(self)

    @property
    def left(self) -> float:
        """What is still to be done; windows that run count whole."""
        return max(self.cost - max(self.windows - 1 - self.helpers, 0) * WINDOW_SECONDS, 0.0)


@dataclass(eq=False)
class _Lane:
    """Requests in the order in which they came; `clock` is the seconds of audio that the lane was served."""

    pauses: bool
    waiting: deque[Turn] = field(default_factory=deque)
    paused: deque[Turn] = field(default_factory=deque)
    running: set[Turn] = field(default_factory=set)
    clock: float = 0.0

    @property
    def ready(self) -> bool:
        """Whether somebody here could use a free slot."""
        while self.waiting and self.waiting[0].future.cancelled():
            self.waiting.popleft()
        return bool(self.paused or self.waiting)

    @property
    def active(self) -> bool:
        return self.ready or bool(self.running)

    @property
    def n_waiting(self) -> int:
        """Requests without a slot."""
        return len(self.paused) + sum(not turn.future.cancelled() for turn in self.waiting)

    def backlog(self) -> float:
        """Seconds of audio that are still to be served."""
        turns = (*self.running, *self.paused, *self.waiting)
        return sum(turn.left for turn in turns if not turn.future.cancelled())


class Scheduler:
    """Runs requests in threads of its own, `slots` at once. Safe to use from many threads.

    `real_time_factor` is the first estimate, until requests have been measured. `on_idle` is called in an engine
    thread, and holds a slot, a moment after nothing runs or waits any more.
    """

    def __init__(
        self,
        slots: int,
        *,
        short_seconds: float,
        name: str,
        on_idle: Callable[[], object] = lambda: None,
    ) -> None:
        self._slots = slots
        self._free = slots
        self._short_seconds = short_seconds
        self._most_paused = max(1, slots // 2)  # each holds a state in memory
        self._on_idle = on_idle
        self._lock = threading.Condition()
        self._short, self._long, self._background = _Lane(pauses=False), _Lane(pauses=True), _Lane(pauses=True)
        self._lanes = (self._short, self._long, self._background)
        self._helpers: deque[Turn] = deque()
        self._measured = [0.0, 0.0]  # seconds of work, seconds of audio; both fade
        self._closed = False
        self._lingers = False  # an engine thread waits for whoever comes at once
        self._heir: Turn | None = None  # who came, and is that thread's next
        self._engine_threads: set[int] = set()
        # However many callers come, there are this many threads, and OpenMP's pools of them.
        self._executor = ThreadPoolExecutor(2 * slots + self._most_paused, thread_name_prefix=name)

    def set_real_time_factor(self, seconds: float, audio_seconds: float) -> None:
        """Give the first estimate: `seconds` of work for `audio_seconds`. What is measured later replaces it."""
        with self._lock:
            self._measured = [seconds, audio_seconds]

    def submit(
        self,
        work: Callable[[Turn], T],
        interrupt: Interrupt,
        audio_seconds: float,
        max_wait_seconds: float | None = None,
        *,
        background: bool = False,
    ) -> Future[T]:
        """Have `work` called in an engine thread when its turn comes, with the caller's context variables.

        As many `background` requests as have begun may be paused at once, each with a state in memory.

        Raises OverloadedError where the predicted wait is longer than `max_wait_seconds`, or, with such a limit,
        where the request would miss its deadline only because it has to wait; ClosedError after `close`.
        """
        future: Future[T] = Future()
        by_length = self._short if audio_seconds <= self._short_seconds else self._long
        lane = self._background if background else by_length
        turn = Turn(self, lane, future, work, interrupt, _billed(audio_seconds))
        with self._lock:
            if self._closed:
                raise ClosedError("the adapter was closed")
            if max_wait_seconds is not None:
                self._check_wait(turn, max_wait_seconds)
            if not lane.active:
                other = self._other(lane)
                # What a lane left unused it does not get back later.
                lane.clock = max(lane.clock, other.clock) if other.active else lane.clock
            lane.waiting.append(turn)
            self._dispatch()
        return future

    def workload(self) -> Workload:
        """Tell what runs and waits, and how long a short request would wait."""
        with self._lock:
            return Workload(
                running=sum(len(lane.running) for lane in self._lanes),
                waiting=sum(lane.n_waiting for lane in self._lanes),
                queued_audio_seconds=sum(lane.backlog() for lane in self._lanes),
                real_time_factor=self._real_time_factor(),
                wait_seconds=self._wait_seconds(self._short),
            )

    def close(self) -> None:
        """Take no more, and wait for what runs and waits; each finds by itself that it must stop.

        Raises EngineError in an engine thread, which would wait for itself.
        """
        if threading.get_ident() in self._engine_threads:
            raise EngineError("the adapter cannot be closed from its own callback")
        with self._lock:
            self._closed = True
            self._lock.notify_all()
            self._lock.wait_for(lambda: not any(lane.active for lane in self._lanes))
        self._executor.shutdown(wait=True)

    def _check_wait(self, turn: Turn, most: float) -> None:
        wait = self._wait_seconds(turn.lane)
        excess = wait - most
        remaining = turn.interrupt.remaining_seconds()
        if remaining is not None and wait > 0:
            excess = max(excess, wait + turn.cost * self._real_time_factor() - remaining)
        if excess > 0:
            raise OverloadedError(
                f"{wait:.0f} s of work are waiting already and the request may wait for {most:g} s: "
                f"try again in {math.ceil(excess)} s",
                excess,
            )

    def _wait_seconds(self, lane: _Lane) -> float:
        """Predict how long a request that joins `lane` now waits.

        While the lane works off what it has, the other gets as much, if it has as much.
        """
        if self._free and not lane.ready:
            return 0.0
        own, other = lane.backlog(), self._other(lane).backlog()
        background = self._background.backlog()
        ahead = own + min(own, other)
        if lane is self._background:
            ahead = own + self._short.backlog() + self._long.backlog()
        elif not lane.running:  # it needs a slot that another lane has: a window must end there
            ahead = max(ahead, min(other + background, WINDOW_SECONDS))
        seconds = ahead * self._real_time_factor() / self._slots
        turns = self._short.running | self._long.running
        if any(turn.helpers for turn in turns) and not (self._short.ready or self._long.ready):
            seconds = min(seconds, WINDOW_SECONDS * self._real_time_factor())  # a helper makes way after its window
        return seconds

    def _real_time_factor(self) -> float:
        work, audio_seconds = self._measured
        return work / audio_seconds if audio_seconds else 0.0

    def _other(self, lane: _Lane) -> _Lane:
        return self._long if lane is self._short else self._short

    def _next(self) -> Turn | None:
        """Take the request that a free slot goes to."""
        lanes = [lane for lane in (self._short, self._long) if lane.ready]
        for lane in sorted(lanes, key=lambda lane: lane.clock):
            if turn := self._begun(lane):
                return turn
        if self._helpers:
            return self._helpers.popleft()
        return self._begun(self._background)

    def _begun(self, lane: _Lane) -> Turn | None:
        """Take the next request of a lane: one that paused, or one that nobody has cancelled meanwhile."""
        while lane.paused or lane.waiting:
            turn = (lane.paused or lane.waiting).popleft()
            if turn.started is not None or turn.future.set_running_or_notify_cancel():
                return turn
        return None

    def _dispatch(self) -> None:
        """Give the free slots away: to threads that wait for them, or to new ones."""
        while self._free and (turn := self._next()):
            fresh = turn.started is None
            self._grant(turn)
            if not fresh:
                self._lock.notify_all()
                continue
            if self._lingers:
                self._lingers, self._heir = False, turn
                self._lock.notify_all()
                continue
            try:
                self._executor.submit(self._run, turn)
            except RuntimeError:  # the interpreter is shutting down
                self._release(turn)
                turn.future.set_exception(ClosedError("the process is ending"))

    def _grant(self, turn: Turn) -> None:
        self._free -= 1
        turn.holds_slot = True
        if turn.started is None:
            turn.started = time.monotonic()
        if turn.helps:
            turn.helps.helpers += 1
            return
        turn.lane.running.add(turn)
        if not turn.lane.pauses:
            turn.lane.clock += turn.cost

    def _release(self, turn: Turn) -> None:
        """Take the slot back from a request that pauses or has ended."""
        turn.lane.running.discard(turn)
        if turn.holds_slot:
            turn.holds_slot = False
            self._free += 1
            if turn.helps:
                turn.helps.helpers -= 1
                self._lock.notify_all()

    def _run(self, first: Turn) -> None:
        """Work in an engine thread: on `first`, then on whatever is next."""
        self._engine_threads.add(threading.get_ident())
        turn: Turn | None = first
        while turn is not None:
            with nullcontext() if turn.helps else turn.interrupt.calling(self._wake):  # a helper never pauses
                _call(turn)
            with self._lock:
                self._measure(turn)
                self._release(turn)
                turn = self._next_here()
                self._lock.notify_all()
                idle = turn is None and not any(lane.active for lane in self._lanes)
                if idle:
                    turn = self._linger()
            if idle and turn is None:
                turn = self._tidy_up()

    def _linger(self) -> Turn | None:
        """Take whoever comes at once; take a slot where nobody does."""
        self._lingers = True
        self._lock.wait_for(lambda: not self._lingers or self._closed, LINGER_SECONDS)
        self._lingers = False
        heir, self._heir = self._heir, None
        if heir is None:
            self._free -= 1
        return heir

    def _tidy_up(self) -> Turn | None:
        """Call `on_idle`, give the slot back, and take whoever came meanwhile."""
        with suppress(Exception):
            self._on_idle()
        with self._lock:
            self._free += 1
            turn = self._next_here()
            self._lock.notify_all()
            return turn

    def _next_here(self) -> Turn | None:
        """Take the next request for this thread; one that paused has a thread of its own."""
        while self._free and (turn := self._next()):
            fresh = turn.started is None
            self._grant(turn)
            if fresh:
                return turn
            self._lock.notify_all()
        return None

    def _measure(self, turn: Turn) -> None:
        if turn.started is None:
            return
        seconds = time.monotonic() - turn.started - turn.paused_seconds + turn.helped_seconds
        if turn.helps:
            turn.helps.helped_seconds += seconds
        elif turn.cost and turn.future.exception() is None:
            work, audio_seconds = self._measured
            self._measured = [work * _MEMORY + seconds, audio_seconds * _MEMORY + turn.cost]

    def _set_cost(self, turn: Turn, cost: float) -> None:
        with self._lock:
            if not turn.lane.pauses:
                turn.lane.clock += cost - turn.cost
            turn.cost = cost

    def _begin_window(self, turn: Turn) -> None:
        with self._lock:
            lane = turn.lane
            if lane.pauses and not turn.interrupt.reason():
                if not turn.helps and not self._free and self._makes_way(lane):
                    self._pause(turn)
                lane.clock += WINDOW_SECONDS
            (turn.helps or turn).windows += 1

    def _makes_way(self, lane: _Lane) -> bool:
        """Whether a request of `lane` shall lend its slot now."""
        if lane is self._background:
            return self._short.ready or self._long.ready
        other = self._other(lane)
        return other.ready and other.clock <= lane.clock and len(lane.paused) < self._most_paused

    def _add_helper(self, turn: Turn, work: Callable[[Turn], object]) -> None:
        with self._lock:
            self._helpers.append(Turn(self, turn.lane, Future(), work, turn.interrupt, cost=0.0, helps=turn))
            self._dispatch()

    def _dismiss_helpers(self, turn: Turn) -> None:
        with self._lock:
            self._helpers = deque(helper for helper in self._helpers if helper.helps is not turn)
            self._lock.wait_for(lambda: not turn.helpers)

    def _pause(self, turn: Turn) -> None:
        """Wait without a slot until it is this request's turn again, or it must stop."""
        paused = time.monotonic()
        self._release(turn)
        turn.lane.paused.append(turn)
        self._dispatch()
        while not turn.holds_slot and not turn.interrupt.reason():
            self._lock.wait(turn.interrupt.remaining_seconds())
        if not turn.holds_slot:  # stopped: the engine ends at its next step, which needs no slot
            turn.lane.paused.remove(turn)
            turn.lane.running.add(turn)
        turn.paused_seconds += time.monotonic() - paused

    def _wake(self) -> None:
        with self._lock:
            self._lock.notify_all()


def _call(turn: Turn) -> None:
    work, turn.work = turn.work, _done  # it has the request's audio, and the thread's first turn stays with the thread
    try:
        result = turn.context.run(work, turn)
    except BaseException as error:
        turn.future.set_exception(error)
    else:
        turn.future.set_result(result)


def _done(_turn: Turn) -> None:
    pass


def _billed(seconds: float) -> float:
    """Round up to whole windows: the encoder runs over all of each."""
    return math.ceil(seconds / WINDOW_SECONDS) * WINDOW_SECONDS
