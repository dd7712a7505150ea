"""Lanes and slots: who runs next, who pauses, what is refused. No model is needed: the work is gates that open."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextvars import ContextVar, copy_context
from typing import Any

import pytest

from tests.web.running_server import wait_until
from whisperlib import scheduler
from whisperlib.errors import ClosedError, EngineError, OverloadedError, TranscriptionCancelled
from whisperlib.interrupt import Interrupt
from whisperlib.options import CancelToken, TranscribeOptions
from whisperlib.scheduler import Scheduler, Turn

PATIENCE_SECONDS = 30


class Engine:
    """A scheduler whose work is told when to go on; `log` has what happened, in order."""

    def __init__(self, slots: int = 1, on_idle: Callable[[], object] = lambda: None) -> None:
        self.closing = threading.Event()
        self.scheduler = Scheduler(slots, short_seconds=60.0, name="test", on_idle=on_idle)
        self.log: list[str] = []
        self._changed = threading.Condition()

    def note(self, what: str) -> None:
        with self._changed:
            self.log.append(what)
            self._changed.notify_all()

    def wait_for(self, what: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: what in self.log, PATIENCE_SECONDS), (what, self.log)

    def submit(
        self,
        name: str,
        seconds: float,
        gates: list[threading.Event],
        *,
        limit: float | None = None,
        background: bool = False,
        **options: Any,
    ) -> Future[str]:
        """Run through a window per gate, each as long as its gate is shut."""
        interrupt = Interrupt(TranscribeOptions(**options), self.closing, time.monotonic())

        def work(turn: Turn) -> str:
            for number, gate in enumerate(gates):
                turn.window()
                interrupt.check()
                self.note(f"{name}{number}")
                assert gate.wait(PATIENCE_SECONDS)
            return name

        return self.scheduler.submit(work, interrupt, seconds, limit, background=background)


def shut(n: int) -> list[threading.Event]:
    return [threading.Event() for _ in range(n)]


def opened(n: int = 1) -> list[threading.Event]:
    gates = shut(n)
    for gate in gates:
        gate.set()
    return gates


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.closing.set()
    engine.scheduler.close()


def test_a_lane_is_first_in_first_out(engine: Engine) -> None:
    first = shut(1)
    futures = [engine.submit("a", 10, first), *(engine.submit(name, 10, opened()) for name in "bcd")]
    first[0].set()
    assert [future.result(PATIENCE_SECONDS) for future in futures] == list("abcd")
    assert engine.log == ["a0", "b0", "c0", "d0"]


def test_as_many_run_at_once_as_there_are_slots() -> None:
    engine = Engine(slots=2)
    gates = [shut(1) for _ in range(3)]
    futures = [engine.submit(name, 10, gate) for name, gate in zip("abc", gates, strict=True)]
    engine.wait_for("a0")
    engine.wait_for("b0")
    assert (engine.scheduler.workload().running, engine.scheduler.workload().waiting) == (2, 1)
    gates[1][0].set()
    engine.wait_for("c0")
    for gate in gates:
        gate[0].set()
    assert {future.result(PATIENCE_SECONDS) for future in futures} == set("abc")
    engine.scheduler.close()


def test_a_short_one_waits_for_one_window_of_a_long_one(engine: Engine) -> None:
    windows, clip = shut(4), shut(1)
    long = engine.submit("L", 120, windows)
    engine.wait_for("L0")
    short = engine.submit("s", 5, clip)
    windows[0].set()
    engine.wait_for("s0")
    assert engine.log == ["L0", "s0"]
    assert engine.scheduler.workload().waiting == 1  # the long one, which lent its slot
    clip[0].set()
    assert short.result(PATIENCE_SECONDS) == "s"
    for gate in windows:
        gate.set()
    assert long.result(PATIENCE_SECONDS) == "L"
    assert engine.log == ["L0", "s0", "L1", "L2", "L3"]


def test_a_long_one_is_not_starved_by_short_ones(engine: Engine) -> None:
    windows = shut(3)
    long = engine.submit("L", 90, windows)
    engine.wait_for("L0")
    shorts = [engine.submit(name, 5, opened()) for name in "abcdef"]
    for gate in windows:
        gate.set()
    assert long.result(PATIENCE_SECONDS) == "L"
    for short in shorts:
        short.result(PATIENCE_SECONDS)
    # Window and clip in turn, as both cost the encoder the same.
    assert engine.log == ["L0", "a0", "L1", "b0", "L2", "c0", "d0", "e0", "f0"]


def test_a_waiting_long_one_comes_before_the_second_of_two_short_ones(engine: Engine) -> None:
    first = shut(1)
    engine.submit("a", 5, first)
    futures = [engine.submit("b", 5, opened()), engine.submit("L", 90, opened(3)), engine.submit("c", 5, opened())]
    engine.wait_for("a0")
    first[0].set()
    for future in futures:
        future.result(PATIENCE_SECONDS)
    assert engine.log.index("L0") < engine.log.index("c0")
    assert engine.log.index("b0") < engine.log.index("L1")


def test_a_lane_saves_nothing_up_while_it_is_idle(engine: Engine) -> None:
    assert engine.submit("L", 300, opened(10)).result(PATIENCE_SECONDS) == "L"
    windows = shut(2)
    long = engine.submit("M", 90, windows)
    engine.wait_for("M0")
    shorts = [engine.submit(name, 5, opened()) for name in "abc"]
    for gate in windows:
        gate.set()
    for future in (long, *shorts):
        future.result(PATIENCE_SECONDS)
    # The long lane is 300 s ahead; the short one gets no more than its turn all the same.
    assert engine.log[10:] == ["M0", "a0", "M1", "b0", "c0"]


@pytest.mark.parametrize("how", ["cancel", "abandon", "deadline", "close"])
def test_a_paused_one_stops_when_it_must(engine: Engine, how: str) -> None:
    token = CancelToken()
    windows, clip = shut(3), shut(1)
    interrupt = Interrupt(
        TranscribeOptions(cancel=token, timeout_seconds=0.2 if how == "deadline" else None),
        engine.closing,
        time.monotonic(),
    )

    def work(turn: Turn) -> None:
        for number, gate in enumerate(windows):
            turn.window()
            interrupt.check()
            engine.note(f"L{number}")
            assert gate.wait(PATIENCE_SECONDS)

    long = engine.scheduler.submit(work, interrupt, 90.0)
    engine.wait_for("L0")
    engine.submit("s", 5, clip)
    windows[0].set()
    engine.wait_for("s0")
    if how == "cancel":
        token.cancel()
    elif how == "abandon":
        interrupt.abandon()
    elif how == "close":
        engine.closing.set()
        closer = threading.Thread(target=engine.scheduler.close)
        closer.start()
    assert long.exception(PATIENCE_SECONDS) is not None
    assert not clip[0].is_set()  # it did not wait for the short one
    clip[0].set()
    if how == "close":
        closer.join(PATIENCE_SECONDS)
        assert not closer.is_alive()
    else:
        assert engine.submit("t", 5, opened()).result(PATIENCE_SECONDS) == "t"


def test_a_cancelled_one_leaves_the_queue(engine: Engine) -> None:
    first = shut(1)
    running = engine.submit("a", 10, first)
    engine.wait_for("a0")
    waiting = engine.submit("b", 10, opened())
    assert engine.scheduler.workload().queued_audio_seconds == 60
    assert waiting.cancel()
    workload = engine.scheduler.workload()
    assert (workload.waiting, workload.queued_audio_seconds) == (0, 30)
    first[0].set()
    assert running.result(PATIENCE_SECONDS) == "a"
    assert engine.log == ["a0"]


def test_work_and_its_helpers_see_the_callers_context_variables() -> None:
    name: ContextVar[str] = ContextVar("name", default="nobody")
    engine = Engine(slots=2)
    helped = threading.Event()

    def help_out(_turn: Turn) -> None:
        engine.note(f"helper of {name.get()}")
        helped.set()

    def work(turn: Turn) -> str:
        turn.add_helper(help_out)
        assert helped.wait(PATIENCE_SECONDS)
        helped.clear()
        turn.dismiss_helpers()
        return name.get()

    def ask(who: str | None) -> Future[str]:
        if who:
            name.set(who)
        return engine.scheduler.submit(work, Interrupt(TranscribeOptions(), engine.closing, time.monotonic()), 1.0)

    for who in ("first", "second", None):
        assert copy_context().run(ask, who).result(PATIENCE_SECONDS) == (who or "nobody")
    assert engine.log == ["helper of first", "helper of second", "helper of nobody"]
    engine.scheduler.close()


class TestAdmission:
    def test_an_idle_engine_has_no_wait(self, engine: Engine) -> None:
        engine.scheduler.set_real_time_factor(15.0, 30.0)
        assert engine.scheduler.workload().wait_seconds == 0
        assert engine.submit("a", 3000, opened(), limit=0).result(PATIENCE_SECONDS) == "a"

    def test_the_wait_is_the_audio_ahead_times_the_real_time_factor(self, engine: Engine) -> None:
        engine.scheduler.set_real_time_factor(15.0, 30.0)
        first = shut(1)
        engine.submit("a", 25, first)
        engine.submit("b", 35, opened())  # two windows
        workload = engine.scheduler.workload()
        assert workload.queued_audio_seconds == 90
        assert workload.real_time_factor == 0.5
        assert workload.wait_seconds == 45
        with pytest.raises(
            OverloadedError, match=r"45 s of work are waiting.*wait for 40 s: try again in 5 s"
        ) as caught:
            engine.submit("c", 5, opened(), limit=40)
        assert caught.value.retry_after_seconds == 5
        engine.submit("c", 5, opened(), limit=45)
        first[0].set()

    def test_each_lane_waits_for_its_own_and_as_much_of_the_other(self, engine: Engine) -> None:
        engine.scheduler.set_real_time_factor(30.0, 30.0)
        windows = shut(1)
        engine.submit("L", 3600, windows)
        engine.wait_for("L0")
        assert engine.scheduler.workload().wait_seconds == 30  # one window of the hour
        engine.submit("s", 5, opened())
        assert engine.scheduler.workload().wait_seconds == 60
        with pytest.raises(OverloadedError):
            engine.submit("M", 100, opened(), limit=3600)  # the hour, and the clip
        windows[0].set()

    def test_two_slots_halve_the_wait(self) -> None:
        engine = Engine(slots=2)
        engine.scheduler.set_real_time_factor(30.0, 30.0)
        gates = [shut(1), shut(1)]
        for name, gate in zip("ab", gates, strict=True):
            engine.submit(name, 30, gate)
        assert engine.scheduler.workload().wait_seconds == 30
        for gate in gates:
            gate[0].set()
        engine.scheduler.close()

    def test_what_would_miss_its_deadline_in_the_queue_is_refused(self, engine: Engine) -> None:
        engine.scheduler.set_real_time_factor(30.0, 30.0)
        first = shut(1)
        engine.submit("a", 30, first)
        with pytest.raises(OverloadedError) as caught:
            engine.submit("b", 30, opened(), limit=100, timeout_seconds=50)
        assert 9 < caught.value.retry_after_seconds <= 11
        engine.submit("c", 30, opened(), timeout_seconds=50)  # without a limit it may try
        first[0].set()

    def test_the_real_time_factor_is_measured(self, engine: Engine) -> None:
        engine.scheduler.set_real_time_factor(3000.0, 30.0)
        for _ in range(100):
            engine.submit("a", 30, opened()).result(PATIENCE_SECONDS)
        assert engine.submit("b", 3, opened()).result(PATIENCE_SECONDS) == "b"
        assert engine.scheduler.workload().real_time_factor < 1

    def test_silence_does_not_count_as_speed(self, engine: Engine) -> None:
        engine.scheduler.set_real_time_factor(15.0, 30.0)
        interrupt = Interrupt(TranscribeOptions(), engine.closing, time.monotonic())
        for _ in range(10):
            engine.scheduler.submit(lambda turn: turn.set_audio_seconds(0.0), interrupt, 30.0).result(PATIENCE_SECONDS)
        assert engine.scheduler.workload().real_time_factor == 0.5


class TestHelpers:
    """A long request L of which helpers may take windows, each as long as its gate is shut."""

    def start(self, engine: Engine, own: threading.Event, gates: list[threading.Event]) -> Future[str]:
        interrupt = Interrupt(TranscribeOptions(), engine.closing, time.monotonic())

        def help_out(number: int) -> Callable[[Turn], None]:
            def work(turn: Turn) -> None:
                turn.window()
                engine.note(f"h{number}")
                assert gates[number].wait(PATIENCE_SECONDS)

            return work

        def work(turn: Turn) -> str:
            for number in range(len(gates)):
                turn.add_helper(help_out(number))
            turn.window()
            engine.note("L")
            assert own.wait(PATIENCE_SECONDS)
            turn.dismiss_helpers()
            engine.note("dismissed")
            return "L"

        return engine.scheduler.submit(work, interrupt, 30.0 * (1 + len(gates)))

    @pytest.fixture
    def two(self) -> Iterator[Engine]:
        engine = Engine(slots=2)
        yield engine
        engine.closing.set()
        engine.scheduler.close()

    def test_they_run_where_nobody_waits(self, two: Engine) -> None:
        own, gates = threading.Event(), shut(3)
        long = self.start(two, own, gates)
        two.wait_for("h0")
        two.wait_for("L")
        gates[0].set()
        two.wait_for("h1")
        clip = two.submit("s", 5, opened())
        assert "s0" not in two.log
        gates[1].set()  # a clip waits for one window
        assert clip.result(PATIENCE_SECONDS) == "s"
        two.wait_for("h2")
        assert two.log.index("s0") < two.log.index("h2")
        gates[2].set()
        own.set()
        assert long.result(PATIENCE_SECONDS) == "L"

    def test_they_come_after_everybody_who_waits(self, two: Engine) -> None:
        own, gates, first = threading.Event(), opened(2), shut(1)
        other = two.submit("a", 40, first)
        two.wait_for("a0")
        long = self.start(two, own, gates)
        two.wait_for("L")
        later = [two.submit(name, seconds, opened()) for name, seconds in (("b", 40), ("c", 5))]
        first[0].set()
        for future in (other, *later):
            future.result(PATIENCE_SECONDS)
        two.wait_for("h1")
        assert max(two.log.index("b0"), two.log.index("c0")) < two.log.index("h0")
        own.set()
        assert long.result(PATIENCE_SECONDS) == "L"

    def test_those_that_run_are_waited_for_and_the_others_never_begin(self, two: Engine) -> None:
        own, gates = threading.Event(), shut(3)
        long = self.start(two, own, gates)
        two.wait_for("h0")
        own.set()
        while two.scheduler._helpers:  # until the others are taken back
            assert not gates[0].wait(0.01)
        assert "dismissed" not in two.log
        gates[0].set()
        assert long.result(PATIENCE_SECONDS) == "L"
        assert two.submit("a", 5, opened()).result(PATIENCE_SECONDS) == "a"
        assert set(two.log) == {"h0", "L", "dismissed", "a0"}

    def test_one_slot_has_none(self, engine: Engine) -> None:
        own, gates = threading.Event(), opened(3)
        own.set()
        assert self.start(engine, own, gates).result(PATIENCE_SECONDS) == "L"
        assert engine.log == ["L", "dismissed"]

    def test_an_error_in_one_harms_nobody(self, two: Engine) -> None:
        failed = threading.Event()

        def fail(_: Turn) -> None:
            failed.set()
            raise ZeroDivisionError

        def work(turn: Turn) -> str:
            turn.add_helper(fail)
            assert failed.wait(PATIENCE_SECONDS)
            turn.dismiss_helpers()
            return "L"

        interrupt = Interrupt(TranscribeOptions(), two.closing, time.monotonic())
        assert two.scheduler.submit(work, interrupt, 90.0).result(PATIENCE_SECONDS) == "L"

    def test_the_predicted_wait_is_one_window(self, two: Engine) -> None:
        two.scheduler.set_real_time_factor(15.0, 30.0)
        own, gates = threading.Event(), shut(3)
        long = self.start(two, own, gates)
        two.wait_for("h0")
        two.wait_for("L")
        workload = two.scheduler.workload()
        assert (workload.running, workload.waiting) == (1, 0)
        assert workload.queued_audio_seconds == 120  # the two windows that run count whole
        assert workload.wait_seconds <= 15
        two.submit("M", 3000, opened(), limit=15)  # not the two minutes of the other
        gates[0].set()
        two.wait_for("M0")
        for gate in (own, *gates):
            gate.set()
        assert long.result(PATIENCE_SECONDS) == "L"

    def test_their_time_counts(self, two: Engine) -> None:
        """The real-time factor is that of a slot, not of the request."""
        own, gates = threading.Event(), shut(1)
        long = self.start(two, own, gates)
        two.wait_for("h0")
        two.wait_for("L")
        begun = time.monotonic()
        assert not own.wait(0.05)
        least = 2 * (time.monotonic() - begun)
        for gate in (own, *gates):
            gate.set()
        assert long.result(PATIENCE_SECONDS) == "L"
        two.scheduler.close()  # what has ended is measured by then
        assert two.scheduler.workload().real_time_factor * 60 >= least


class TestBackground:
    @pytest.mark.parametrize("seconds", [5, 3000])
    def test_it_makes_way_at_its_next_window_for_any_other(self, engine: Engine, seconds: float) -> None:
        windows, other = shut(2), shut(1)
        background = engine.submit("B", 60, windows, background=True)
        engine.wait_for("B0")
        first = engine.submit("x", seconds, other)
        windows[0].set()
        engine.wait_for("x0")
        second = engine.submit("y", seconds, opened())
        other[0].set()
        assert (first.result(PATIENCE_SECONDS), second.result(PATIENCE_SECONDS)) == ("x", "y")
        windows[1].set()
        assert background.result(PATIENCE_SECONDS) == "B"
        assert engine.log == ["B0", "x0", "y0", "B1"]

    def test_it_begins_when_nobody_else_waits(self, engine: Engine) -> None:
        first = shut(1)
        futures = [engine.submit("a", 5, first), engine.submit("B", 5, opened(), background=True)]
        engine.wait_for("a0")
        futures += [engine.submit("c", 5, opened()), engine.submit("L", 90, opened())]
        first[0].set()
        for future in futures:
            future.result(PATIENCE_SECONDS)
        assert engine.log[-1] == "B0"

    def test_all_of_them_make_way(self) -> None:
        engine = Engine(slots=2)
        windows, clips = [shut(2), shut(2)], [shut(1), shut(1)]
        for name, gates in zip("BC", windows, strict=True):
            engine.submit(name, 60, gates, background=True)
        engine.wait_for("B0")
        engine.wait_for("C0")
        for name, gates in zip("xy", clips, strict=True):
            engine.submit(name, 90, gates)
        for gates in windows:
            gates[0].set()
        engine.wait_for("x0")
        engine.wait_for("y0")
        assert (engine.scheduler.workload().running, engine.scheduler.workload().waiting) == (2, 2)
        for gates in (*clips, *windows):
            for gate in gates:
                gate.set()
        engine.wait_for("B1")
        engine.wait_for("C1")
        engine.scheduler.close()

    def test_the_others_wait_for_one_window_of_it(self, engine: Engine) -> None:
        engine.scheduler.set_real_time_factor(15.0, 30.0)
        windows = shut(1)
        engine.submit("B", 3000, windows, background=True)
        engine.wait_for("B0")
        workload = engine.scheduler.workload()
        assert (workload.queued_audio_seconds, workload.wait_seconds) == (3000, 15)
        with pytest.raises(OverloadedError, match="1500 s of work"):
            engine.submit("C", 30, opened(), limit=100, background=True)
        assert engine.submit("a", 5, opened(), limit=15)
        assert engine.submit("L", 90, opened(), limit=15)
        windows[0].set()

    def test_a_cancelled_one_stops_while_it_is_paused(self, engine: Engine) -> None:
        token, windows, other = CancelToken(), shut(2), shut(1)
        background = engine.submit("B", 60, windows, background=True, cancel=token)
        engine.wait_for("B0")
        engine.submit("x", 5, other)
        windows[0].set()
        engine.wait_for("x0")
        token.cancel()
        assert isinstance(background.exception(PATIENCE_SECONDS), TranscriptionCancelled)
        other[0].set()


class TestEnd:
    def test_it_waits_for_what_runs_and_takes_no_more(self) -> None:
        engine = Engine()
        first = shut(1)
        futures = [engine.submit("a", 5, first), engine.submit("b", 5, opened())]
        engine.wait_for("a0")
        closer = threading.Thread(target=engine.scheduler.close)
        closer.start()
        first[0].set()
        closer.join(PATIENCE_SECONDS)
        assert [future.result(0) for future in futures] == ["a", "b"]
        with pytest.raises(ClosedError):
            engine.submit("c", 5, opened())
        engine.scheduler.close()

    def test_not_from_inside(self, engine: Engine) -> None:
        interrupt = Interrupt(TranscribeOptions(), engine.closing, time.monotonic())
        future = engine.scheduler.submit(lambda _turn: engine.scheduler.close(), interrupt, 1.0)
        assert isinstance(future.exception(PATIENCE_SECONDS), EngineError)

    def test_an_exception_is_the_future_s_and_frees_the_slot(self, engine: Engine) -> None:
        interrupt = Interrupt(TranscribeOptions(), engine.closing, time.monotonic())
        future = engine.scheduler.submit(lambda _turn: 1 // 0, interrupt, 1.0)
        assert isinstance(future.exception(PATIENCE_SECONDS), ZeroDivisionError)
        assert engine.submit("a", 5, opened()).result(PATIENCE_SECONDS) == "a"

    def test_it_tells_when_it_is_idle(self) -> None:
        idle = threading.Event()
        engine = Engine(on_idle=idle.set)
        first = shut(1)
        engine.submit("a", 5, first)
        engine.submit("b", 5, opened())
        engine.wait_for("a0")
        assert not idle.is_set()
        first[0].set()
        assert idle.wait(PATIENCE_SECONDS)
        assert engine.log == ["a0", "b0"]
        engine.scheduler.close()

    def test_it_tidies_up_behind_who_comes_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(scheduler, "LINGER_SECONDS", PATIENCE_SECONDS)
        engine = Engine(slots=2)
        threads: list[int] = []

        def note(_turn: Turn) -> None:
            engine.note("asked")
            threads.append(threading.get_ident())

        engine.scheduler._on_idle = lambda: engine.note("idle")
        interrupt = Interrupt(TranscribeOptions(), engine.closing, time.monotonic())
        for _ in range(3):
            engine.scheduler.submit(note, interrupt, 1.0).result(PATIENCE_SECONDS)
            wait_until(lambda: engine.scheduler._lingers, "it waits for who comes at once")
            assert engine.scheduler.workload().running == 0
        engine.scheduler.close()
        assert engine.log == ["asked", "asked", "asked", "idle"]
        assert len(set(threads)) == 1

    def test_who_comes_while_it_tidies_up_waits_for_the_slot(self) -> None:
        tidying, done = threading.Event(), threading.Event()

        def tidy_up() -> None:
            tidying.set()
            assert done.wait(PATIENCE_SECONDS)

        engine = Engine(on_idle=tidy_up)
        engine.submit("a", 5, opened())
        assert tidying.wait(PATIENCE_SECONDS)
        late = engine.submit("b", 5, opened())
        assert engine.scheduler.workload().waiting == 1
        done.set()
        assert late.result(PATIENCE_SECONDS) == "b"
        engine.scheduler.close()
