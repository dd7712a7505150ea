"""Keeps a process with a model: another is started where it ends, unless that happens time and again."""

from __future__ import annotations

import copy
import logging
import os
import threading
import time
from collections import deque
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Literal

from whisperlib.cache import Stats
from whisperlib.errors import (
    EngineCrashedError,
    EngineError,
    OverloadedError,
    TranscriptionCancelled,
    UnavailableError,
    WhisperlibError,
)
from whisperlib.interrupt import Interrupt
from whisperlib.isolation.call import Call
from whisperlib.isolation.messages import Load, Loaded, Query
from whisperlib.isolation.process import EngineProcess
from whisperlib.scheduler import Workload

logger = logging.getLogger(__name__)

MAX_CRASHES = 5  # within CRASH_SECONDS
CRASH_SECONDS = 60.0
REST_SECONDS = 60.0  # for which it is then left alone
QUERY_SECONDS = 5.0  # a process that answers nothing by then hangs


class Supervisor:
    """Starts the process, and waits until the model is loaded. Raises what loading raises, or EngineCrashedError."""

    def __init__(self, load: Load) -> None:
        self.closing = threading.Event()
        self.owner = os.getpid()
        self._load = load
        self._changed = threading.Condition()
        self._newest: EngineProcess | None = None
        self._loaded: Loaded | None = None  # what the last one that was loaded said
        self._is_ready = False  # the newest takes requests
        self._failure: BaseException | None = None  # why there is none, and none is on its way
        self._rests_until = 0.0
        self._crashes: deque[float] = deque(maxlen=MAX_CRASHES)
        self._launched = 0.0
        self._load_seconds = 0.0
        self._n_waiting = 0
        try:
            with self._changed:
                self._launch()
                self._changed.wait_for(lambda: self._is_ready or self._failure)
        except BaseException:
            self.close()
            raise
        if self._failure:
            raise self._failure

    @property
    def loaded(self) -> Loaded:
        """What the process runs; while another is started, what the one before ran."""
        assert self._loaded  # noqa: S101 (else __init__ has raised)
        return self._loaded

    def ready(
        self, interrupt: Interrupt, max_wait_seconds: float | None, ended: EngineProcess | None = None
    ) -> EngineProcess:
        """Return the process that has the model; while another is started, wait for that. `ended` is not it any more.

        Raises OverloadedError where that takes longer than `max_wait_seconds`, what `interrupt` says, UnavailableError
        while none is started as it has crashed too often, and EngineError or ModelError where none can be.
        """
        started = time.monotonic()
        with self._changed, interrupt.calling(self._wake):
            self._n_waiting += 1
            try:
                while True:
                    interrupt.check()
                    if (process := self._usable()) and process is not ended:
                        return process
                    waited, remaining = time.monotonic() - started, interrupt.remaining_seconds()
                    if max_wait_seconds is not None:
                        if waited >= max_wait_seconds:
                            raise OverloadedError(self._why_wait(max_wait_seconds), max(1.0, self._wait_seconds()))
                        left = max_wait_seconds - waited
                        remaining = left if remaining is None else min(left, remaining)
                    self._changed.wait(remaining)
            finally:
                self._n_waiting -= 1

    def workload(self) -> Workload:
        """Tell what runs and waits; what waits for a process is told here."""
        told = self._ask("workload")
        if isinstance(told, Workload):
            return told
        with self._changed:
            return Workload(0, self._n_waiting, 0.0, 0.0, self._wait_seconds())

    def cache_stats(self) -> Stats:
        """Tell how full the cache is."""
        told = self._ask("cache")
        return told if isinstance(told, Stats) else Stats(None, 0)

    def close(self, *, wait: bool = True) -> None:
        """Stop what runs, and end the process; without `wait`, some time later. Again: nothing happens."""
        self.closing.set()
        if os.getpid() != self.owner:
            return  # a fork's copy: the process is the parent's
        with self._changed:
            process = self._newest
            self._changed.notify_all()
        if process:
            process.close(TranscriptionCancelled("the adapter was closed during the request"))
            if wait:
                process.wait()

    def _usable(self) -> EngineProcess | None:
        """Return the process if it takes requests; None where that is to be waited for."""
        if self._failure and time.monotonic() >= self._rests_until:
            self._launch()
        if isinstance(self._failure, EngineCrashedError):  # those of others: this request was in no process
            raise UnavailableError(str(self._failure), max(1.0, self._rests_until - time.monotonic()))
        if self._failure:
            raise copy.copy(self._failure).with_traceback(None)
        return self._newest if self._is_ready else None

    def _ask(self, what: Literal["workload", "cache"]) -> object:
        """Ask the process how it is; None where there is none, or it does not answer."""
        with self._changed:
            process = self._newest if self._is_ready else None
        if process is None:
            return None
        call = Call()
        if process.ask(call, lambda number: Query(number, what)) is None:
            return None
        try:
            return call.future.result(QUERY_SECONDS)
        except (WhisperlibError, FutureTimeoutError):
            return None

    def _launch(self) -> None:
        self._failure, self._launched = None, time.monotonic()
        try:
            self._newest = EngineProcess(self._load, self._take_up, self._replace)
        except OSError as error:
            self._give_up(EngineError(f"the engine's process cannot be started: {error}"))

    def _take_up(self, process: EngineProcess, loaded: Loaded) -> None:
        with self._changed:
            self._loaded, self._is_ready = loaded, True
            self._load_seconds = time.monotonic() - self._launched
            self._changed.notify_all()
        logger.info("the engine runs in process %d", process.id)

    def _replace(self, process: EngineProcess) -> WhisperlibError:
        """React to the end of the process; return what its requests raise."""
        with self._changed:
            what = f"the engine's process {process.how_it_ended} while {self._what_it_did(process)}"
            self._is_ready = False
            self._crashes.append(time.monotonic())
            if process.load_error:
                self._give_up(process.load_error)
            elif self._loaded is None:
                self._give_up(EngineCrashedError(f"{what}: the log has what it said last"))
            elif len(self._crashes) == MAX_CRASHES and self._crashes[-1] - self._crashes[0] < CRASH_SECONDS:
                often = f"{what}, and {MAX_CRASHES} times within {CRASH_SECONDS:g} s"
                self._give_up(EngineCrashedError(f"{often}: it is left alone for {REST_SECONDS:g} s"))
            elif not self.closing.is_set():
                self._launch()
            failure = self._failure
            self._changed.notify_all()
        if not process.load_error:
            logger.error("%s: %s", failure or f"{what}; it is being started again", _lines(process))
        if isinstance(failure, EngineCrashedError):
            return failure
        return EngineCrashedError(f"{what}; it is being started again: send the request again")

    def _give_up(self, error: BaseException) -> None:
        self._failure, self._rests_until = error, time.monotonic() + REST_SECONDS

    def _what_it_did(self, process: EngineProcess) -> str:
        if not self._is_ready:
            return "it loaded the model"
        if not process.n_calls:
            return "it was idle"
        return "1 request was in it" if process.n_calls == 1 else f"{process.n_calls} requests were in it"

    def _wait_seconds(self) -> float:
        """Predict how long the start of another process still takes."""
        if self._failure or self.closing.is_set():
            return 0.0
        return max(0.0, self._launched + self._load_seconds - time.monotonic())

    def _why_wait(self, most: float) -> str:
        return f"the engine is being started again, and the request may wait for {most:g} s: try again later"

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


def _lines(process: EngineProcess) -> str:
    return "\n".join(process.last_lines) or "it said nothing"
