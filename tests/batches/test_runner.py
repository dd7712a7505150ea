"""The runner on a real queue; its work is functions that do what a test says."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.batches.test_sqlite import add, batch, states, told
from tests.web.running_server import wait_until
from whisperlib.batches import Crashed, Failed, Finished, Item, Postponed, Runner, Verdict, runner
from whisperlib.batches.sqlite import SqliteQueue
from whisperlib.errors import BatchStoreError
from whisperlib.options import CancelToken, ProgressCallback

PATIENCE_SECONDS = 30.0

Start = Callable[..., Runner]


def finish(item: Item, _cancel: CancelToken, _progress: ProgressCallback) -> Verdict:
    return Finished(f'"{item.index}"', 1.0)


def until_cancelled(_item: Item, cancel: CancelToken, progress: ProgressCallback) -> Verdict:
    """Run until told to stop, as a long file does."""
    stopped = threading.Event()
    cancel.add_listener(stopped.set)
    progress(0.5)
    assert stopped.wait(PATIENCE_SECONDS)
    return Postponed(60.0)


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[SqliteQueue]:
    queue = SqliteQueue(tmp_path)
    yield queue
    queue.close()


@pytest.fixture
def start(queue: SqliteQueue) -> Iterator[Start]:
    """Start a runner that is stopped at the end."""
    started: list[Runner] = []

    def start(work: Any, **keywords: Any) -> Runner:
        given = {"slots": 1, "may_begin": lambda _: True, "on_end": lambda _: None, "keep_seconds": 1e6, **keywords}
        started.append(Runner(queue, work, **given))
        return started[-1]

    yield start
    for one in started:
        one.stop()


def wait_for(queue: SqliteQueue, batch_id: str, *expected: str) -> None:
    wait_until(lambda: states(queue, batch_id) == list(expected), f"{expected}", PATIENCE_SECONDS)


def test_all_is_worked_off_and_told(queue: SqliteQueue, start: Start) -> None:
    ended: list[str] = []
    batch_id = add(queue, 3)
    start(lambda item, *_: Failed('"why"') if item.index == 1 else finish(item, *_), on_end=ended.append)
    wait_for(queue, batch_id, "done", "failed", "done")
    assert [(item.result, item.error) for item in queue.items(batch_id, -1, 9)] == [
        ('"0"', None),
        (None, '"why"'),
        ('"2"', None),
    ]
    wait_until(lambda: len(ended) == 3, "all are told")
    assert sorted(ended) == ["done", "done", "failed"]


def test_what_comes_later_is_seen_at_once(queue: SqliteQueue, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "IDLE_SECONDS", 3600.0)
    running = start(finish)
    batch_id = add(queue)
    running.wake()
    wait_for(queue, batch_id, "done")


def test_as_many_run_at_once_as_there_are_slots(queue: SqliteQueue, start: Start) -> None:
    batch_id = add(queue, 3)
    running = start(until_cancelled, slots=2)
    wait_until(lambda: running.progress(batch_id) == 1.0, "two run, and are half done")
    assert told(queue, batch_id).counts["running"] == 2


def test_nothing_is_begun_while_it_may_not(queue: SqliteQueue, start: Start) -> None:
    allowed, asked = threading.Event(), threading.Event()

    def may_begin(settings: str) -> bool:
        assert settings == "{}"
        asked.set()
        return allowed.is_set()

    batch_id = add(queue)
    start(finish, may_begin=may_begin)
    assert asked.wait(PATIENCE_SECONDS)
    assert states(queue, batch_id) == ["queued"]
    allowed.set()
    wait_for(queue, batch_id, "done")


def test_what_may_not_begin_holds_up_no_other_settings(queue: SqliteQueue, start: Start) -> None:
    held, other = queue.add(batch(1, settings='{"held": 1}'))[0], add(queue)
    start(finish, may_begin=lambda settings: settings == "{}")
    wait_for(queue, other, "done")
    assert states(queue, held) == ["queued"]


def test_an_item_that_has_ended_is_no_progress_besides(
    queue: SqliteQueue, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[float] = []
    really = queue.finish

    def work(item: Item, cancel: CancelToken, progress: ProgressCallback) -> Verdict:
        progress(1.0)
        told.append(running.progress(batch_id))
        return finish(item, cancel, progress)

    def look(*arguments: Any) -> bool:
        written = really(*arguments)
        told.append(running.progress(batch_id))
        return written

    monkeypatch.setattr(queue, "finish", look)
    running = start(work)
    batch_id = add(queue)
    running.wake()
    wait_until(lambda: len(told) == 2, "it is finished")
    assert told == [1.0, 0.0]


def test_nobody_waits_for_one_who_looks_for_an_item(queue: SqliteQueue, start: Start) -> None:
    looks, may_go_on = threading.Event(), threading.Event()

    def may_begin(_settings: str) -> bool:
        looks.set()
        return may_go_on.wait(PATIENCE_SECONDS)

    batch_id = add(queue)
    running = start(finish, may_begin=may_begin)
    assert looks.wait(PATIENCE_SECONDS)
    with ThreadPoolExecutor(1) as other:
        try:
            other.submit(running.wake).result(PATIENCE_SECONDS / 2)
            assert other.submit(running.progress, batch_id).result(PATIENCE_SECONDS / 2) == 0.0
        finally:
            may_go_on.set()
    wait_for(queue, batch_id, "done")


def test_what_is_unforeseen_is_logged_and_ends_no_thread(
    queue: SqliteQueue, start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runner, "TROUBLE_SECONDS", 0.01)
    failures = iter([True, True])

    def may_begin(_settings: str) -> bool:
        if next(failures, False):
            raise ZeroDivisionError
        return True

    batch_id = add(queue)
    with caplog.at_level(logging.ERROR, "whisperlib"):
        start(finish, may_begin=may_begin)
        wait_for(queue, batch_id, "done")
    assert [record.exc_info and record.exc_info[0] for record in caplog.records] == [ZeroDivisionError] * 2


def test_an_item_that_is_taken_while_all_stops_is_given_back(
    queue: SqliteQueue, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, claimed = queue.claim, threading.Event()

    def claim_late(*arguments: Any, **keywords: Any) -> Item | None:
        item = claim(*arguments, **keywords)
        claimed.set()
        wait_until(lambda: running._stopping, "it stops")
        return item

    monkeypatch.setattr(queue, "claim", claim_late)
    begun: list[Item] = []
    running = start(lambda item, *_: begun.append(item))
    batch_id = add(queue)
    running.wake()
    assert claimed.wait(PATIENCE_SECONDS)
    running.stop()
    assert (states(queue, batch_id), begun) == (["queued"], [])
    again = claim("other", 60.0)
    assert again
    assert again.attempts == 1


def test_a_stop_gives_back_what_runs_as_if_it_had_not_begun(queue: SqliteQueue, start: Start) -> None:
    batch_id = add(queue)
    running = start(until_cancelled)
    wait_until(lambda: running.progress(batch_id), "it runs")
    running.stop()
    assert states(queue, batch_id) == ["queued"]
    again = queue.claim("other", 60.0)
    assert again
    assert (again.attempts, again.retries) == (1, 0)


@pytest.mark.parametrize("how", ["cancel", "forget"])
def test_what_nobody_wants_any_more_is_stopped(queue: SqliteQueue, start: Start, how: str) -> None:
    batch_id, other = add(queue), queue.add(batch(1))[0]
    work = lambda item, *rest: (until_cancelled if item.batch_id == batch_id else finish)(item, *rest)  # noqa: E731
    running = start(work)
    wait_until(lambda: running.progress(batch_id), "it runs")
    getattr(queue, how)(batch_id)
    running.check_leases()
    wait_for(queue, other, "done")
    assert states(queue, batch_id) == (["cancelled"] if how == "cancel" else [])


def test_a_failure_that_may_pass_is_tried_three_times_again(
    queue: SqliteQueue, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "RETRY_SECONDS", (0.0, 0.0, 0.0))
    seen: list[tuple[int, int]] = []

    def fail(item: Item, *_: object) -> Verdict:
        seen.append((item.attempts, item.retries))
        return Failed('"late"', transient=True)

    batch_id = add(queue)
    start(fail)
    wait_for(queue, batch_id, "failed")
    assert seen == [(1, 0), (1, 1), (1, 2), (1, 3)]


def test_the_delays_grow() -> None:
    assert len(runner.RETRY_SECONDS) == 3
    assert list(runner.RETRY_SECONDS) == sorted(set(runner.RETRY_SECONDS))


def test_what_is_postponed_counts_as_nothing(queue: SqliteQueue, start: Start) -> None:
    seen: list[Item] = []

    def work(item: Item, *rest: Any) -> Verdict:
        seen.append(item)
        return Postponed(0.0) if len(seen) < 6 else finish(item, *rest)

    batch_id = add(queue)
    start(work)
    wait_for(queue, batch_id, "done")
    assert {(item.attempts, item.retries) for item in seen} == {(1, 0)}


def test_what_may_have_ended_the_process_runs_alone(queue: SqliteQueue, start: Start, tmp_path: Path) -> None:
    batch_id = add(queue, 4)
    assert [item and item.index for item in (queue.claim("dead", 60.0), queue.claim("dead", 60.0))] == [0, 1]
    SqliteQueue(tmp_path, alone=True).close()  # which queues them again
    running, most = set[int](), list[tuple[int, int]]()
    lock = threading.Lock()

    def work(item: Item, *rest: Any) -> Verdict:
        with lock:
            running.add(item.index)
            most.append((item.attempts, len(running)))
        verdict = finish(item, *rest)
        with lock:
            running.discard(item.index)
        return verdict

    start(work, slots=3)
    wait_for(queue, batch_id, *["done"] * 4)
    assert [attempts for attempts, _ in most] == [1, 1, 2, 2]
    assert [count for attempts, count in most if attempts > 1] == [1, 1]


def test_what_may_have_ended_the_process_waits_for_what_runs(
    queue: SqliteQueue, start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    batch_id = add(queue, 2)
    assert queue.claim("dead", 60.0)
    SqliteQueue(tmp_path, alone=True).close()
    claim, looked = queue.claim, threading.Event()
    ended: list[int] = []
    before: list[list[int]] = []

    def look(*arguments: Any, **keywords: Any) -> Item | None:
        item = claim(*arguments, **keywords)
        if item is None:
            looked.set()
        return item

    def work(item: Item, *rest: Any) -> Verdict:
        if item.attempts > 1:
            before.append(list(ended))
        else:
            looked.wait(PATIENCE_SECONDS)
            ended.append(item.index)
        return finish(item, *rest)

    monkeypatch.setattr(queue, "claim", look)
    start(work, slots=2)
    wait_for(queue, batch_id, "done", "done")
    assert before == [[1]]


def test_what_may_have_crashed_the_model_runs_again_alone_and_after_a_rest(
    queue: SqliteQueue, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "CRASH_SECONDS", 0.5)
    both, lock = threading.Barrier(2), threading.Lock()
    begun: list[tuple[int, int, float]] = []
    crashed = 0.0

    def work(item: Item, *rest: Any) -> Verdict:
        nonlocal crashed
        with lock:
            begun.append((item.index, item.attempts, time.monotonic()))
        if item.attempts == 1 and item.index < 2:
            both.wait(PATIENCE_SECONDS)
            crashed = time.monotonic()
            return Crashed()
        return finish(item, *rest)

    batch_id = add(queue, 3)
    start(work, slots=2)
    wait_for(queue, batch_id, "done", "done", "done")
    assert [one[:2] for one in sorted(begun[:2])] == [(0, 1), (1, 1)]
    assert [one[:2] for one in begun[2:]] == [(2, 1), (0, 2), (1, 2)]
    assert begun[2][2] >= crashed + 0.5


def test_a_result_waits_for_a_queue_that_fails(
    queue: SqliteQueue, start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runner, "TROUBLE_SECONDS", 0.01)
    really, failures = queue.finish, iter([True, True, True])

    def fails_at_first(*arguments: Any) -> bool:
        if next(failures, False):
            raise BatchStoreError("the disk is full")
        return really(*arguments)

    monkeypatch.setattr(queue, "finish", fails_at_first)
    batch_id = add(queue)
    with caplog.at_level(logging.WARNING, "whisperlib"):
        start(finish)
        wait_for(queue, batch_id, "done")
    assert [record.getMessage() for record in caplog.records] == ["batches wait: the disk is full"]


def test_what_is_old_is_forgotten(queue: SqliteQueue, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "RENEW_SECONDS", 0.05)
    batch_id = add(queue)
    start(finish, keep_seconds=0)
    wait_until(lambda: queue.status(batch_id) is None, "it is forgotten")
