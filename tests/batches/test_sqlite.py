"""The queue in SQLite: nothing is lost, nothing is done twice, whoever dies meanwhile."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from whisperlib.batches import BatchQueue, Item, NewBatch, NewItem, Upload, open_queue
from whisperlib.batches.queue import BatchStatus
from whisperlib.batches.sqlite import VERSION, SqliteQueue
from whisperlib.errors import (
    AudioNotFoundError,
    BatchesFullError,
    BatchKeyTakenError,
    BatchStoreError,
    OverloadedError,
)
from whisperlib.settings import Settings

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]
LEASE_SECONDS = 60.0


class Clock:
    """Tells the time that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(tmp_path: Path, clock: Clock) -> Iterator[SqliteQueue]:
    queue = SqliteQueue(tmp_path, clock=clock)
    yield queue
    queue.close()


def batch(n: int = 1, key: str | None = None, settings: str = "{}") -> NewBatch:
    return NewBatch([NewItem(f"item {i}", "{}", url=f"http://a.example/{i}") for i in range(n)], settings, key)


def add(queue: BatchQueue, n: int = 1) -> str:
    batch_id, new = queue.add(batch(n))
    assert new
    return batch_id


def claim(queue: BatchQueue, owner: str = "owner", *, untried: bool = False) -> Item:
    item = queue.claim(owner, LEASE_SECONDS, untried=untried)
    assert item is not None
    return item


def told(queue: BatchQueue, batch_id: str) -> BatchStatus:
    status = queue.status(batch_id)
    assert status is not None
    return status


def states(queue: BatchQueue, batch_id: str) -> list[str]:
    return [item.state for item in queue.items(batch_id, -1, 1000)]


def uploads(directory: Path) -> list[Path]:
    return list((directory / "uploads").iterdir())


class TestItems:
    def test_they_come_in_their_order_batch_after_batch(self, queue: SqliteQueue) -> None:
        first, second = add(queue, 2), add(queue, 1)
        claimed = [claim(queue) for _ in range(3)]
        assert [(item.batch_id, item.index) for item in claimed] == [(first, 0), (first, 1), (second, 0)]
        assert queue.claim("owner", LEASE_SECONDS) is None
        assert (claimed[1].name, claimed[1].url, claimed[1].options) == ("item 1", "http://a.example/1", "{}")

    def test_a_batch_is_queued_then_running_then_done(self, queue: SqliteQueue, clock: Clock) -> None:
        batch_id = add(queue, 2)
        assert (told(queue, batch_id).state, told(queue, batch_id).created) == ("queued", 1000)
        clock.now = 1001
        first = claim(queue)
        assert (told(queue, batch_id).state, told(queue, batch_id).started) == ("running", 1001)
        assert queue.finish(first, '"text"', 2.5)
        assert told(queue, batch_id).state == "running"
        clock.now = 1002
        assert queue.fail(claim(queue), '"why"')
        status = told(queue, batch_id)
        assert (status.state, status.finished, status.audio_seconds) == ("done", 1002, 2.5)
        assert (status.total, status.ended, status.counts["done"], status.counts["failed"]) == (2, 2, 1, 1)
        assert [(item.result, item.error) for item in queue.items(batch_id, -1, 9)] == [
            ('"text"', None),
            (None, '"why"'),
        ]

    def test_pages_follow_each_other(self, queue: SqliteQueue) -> None:
        batch_id = add(queue, 5)
        queue.finish(claim(queue), "1", 1)
        queue.fail(claim(queue), "2")
        pages = [queue.items(batch_id, after, 2) for after in (-1, 1, 3, 4)]
        assert [[item.index for item in page] for page in pages] == [[0, 1], [2, 3], [4], []]
        failed = queue.items(batch_id, -1, 9, states=["failed"])
        assert [item.index for item in failed] == [1]
        assert queue.items("batch_none", -1, 9) == []

    def test_one_that_is_put_back_comes_again_when_it_is_due(self, queue: SqliteQueue, clock: Clock) -> None:
        add(queue)
        item = claim(queue)
        assert (item.attempts, item.retries) == (1, 0)
        assert queue.release(item)
        again = claim(queue)
        assert (again.attempts, again.retries) == (1, 0)
        assert queue.retry(again, 30)
        assert queue.claim("owner", LEASE_SECONDS) is None
        clock.now += 31
        assert (claim(queue).attempts, again.token) != (1, item.token)

    def test_a_retry_is_counted(self, queue: SqliteQueue) -> None:
        add(queue)
        assert queue.retry(claim(queue), 0)
        item = claim(queue)
        assert (item.attempts, item.retries) == (1, 1)

    def test_what_ended_with_what_ran_it_comes_last_and_is_counted_also_in_the_file(
        self, queue: SqliteQueue, tmp_path: Path
    ) -> None:
        add(queue, 2)
        assert queue.abandon(claim(queue))
        second = claim(queue)
        assert (second.index, second.attempts) == (1, 1)
        assert queue.finish(second, "1", 1)
        assert queue.claim("owner", LEASE_SECONDS, untried=True) is None
        again = SqliteQueue(tmp_path)
        first = claim(again)
        assert (first.index, first.attempts, first.retries) == (0, 2, 0)
        assert again.release(first)
        assert claim(again).attempts == 2
        again.close()

    def test_a_result_that_is_saved_waits_for_its_clean_up(self, queue: SqliteQueue) -> None:
        items = [
            NewItem(name, "{}", url="http://a.example/", enhance=enhance)
            for name, enhance in (("a", "always"), ("b", None))
        ]
        batch_id, _ = queue.add(NewBatch(items, "{}"))
        first = claim(queue)
        assert (first.enhance, first.result) == ("always", None)
        assert queue.save(first, '"text"')
        assert queue.items(batch_id, -1, 1)[0].result is None
        assert queue.release(first)
        assert not queue.save(first, '"late"')
        again = claim(queue)
        assert (again.index, again.result) == (0, '"text"')
        assert queue.finish(again, '"text"', 1.0, '"enhancement"')
        (told, _) = queue.items(batch_id, -1, 9)
        assert (told.state, told.result, told.enhancement) == ("done", '"text"', '"enhancement"')
        second = claim(queue)
        assert second.enhance is None
        assert queue.save(second, '"text"')
        assert queue.cancel(batch_id)
        assert queue.items(batch_id, 0, 9)[0].result is None

    def test_who_wants_some_settings_gets_those_in_their_order(self, queue: SqliteQueue) -> None:
        other, wanted = queue.add(batch(1, settings='"other"'))[0], queue.add(batch(2, settings='"wanted"'))[0]
        queue.add(batch(1, settings='"wanted"'))
        assert sorted(queue.open_settings()) == ['"other"', '"wanted"']
        items = [queue.claim("owner", LEASE_SECONDS, settings=['"wanted"', '"none"']) for _ in range(3)]
        assert [item and item.index for item in items] == [0, 1, 0]
        assert items[0]
        assert items[0].batch_id == wanted
        assert queue.claim("owner", LEASE_SECONDS, settings=['"wanted"']) is None
        assert queue.claim("owner", LEASE_SECONDS, settings=[]) is None
        queue.cancel(other)
        assert queue.open_settings() == ['"wanted"']

    def test_what_waits_is_counted(self, queue: SqliteQueue) -> None:
        add(queue, 3)
        assert queue.count_queued() == 3
        claim(queue)
        assert queue.count_queued() == 2


class TestLeases:
    def test_an_expired_one_goes_to_another_and_the_first_can_write_nothing(
        self, queue: SqliteQueue, clock: Clock
    ) -> None:
        batch_id = add(queue)
        first = claim(queue, "one")
        clock.now += LEASE_SECONDS - 1
        assert queue.claim("two", LEASE_SECONDS) is None
        clock.now += 2
        second = claim(queue, "two")
        assert second.attempts == 2
        assert not queue.finish(first, '"first"', 1)
        assert not queue.fail(first, '"first"')
        assert not queue.release(first)
        assert not queue.retry(first, 0)
        assert not queue.abandon(first)
        assert queue.finish(second, '"second"', 1)
        assert not queue.finish(second, '"twice"', 1)
        assert [item.result for item in queue.items(batch_id, -1, 9)] == ['"second"']
        clock.now += 10 * LEASE_SECONDS
        assert queue.claim("three", LEASE_SECONDS) is None

    def test_a_renewed_one_lives_on_and_a_lost_one_is_told(self, queue: SqliteQueue, clock: Clock) -> None:
        add(queue, 2)
        kept, lost = claim(queue), claim(queue)
        queue.finish(lost, "1", 1)
        clock.now += LEASE_SECONDS - 1
        assert list(queue.renew([kept, lost], LEASE_SECONDS)) == [lost]
        clock.now += LEASE_SECONDS - 1
        assert queue.claim("two", LEASE_SECONDS) is None
        assert queue.finish(kept, "1", 1)

    def test_what_was_begun_before_comes_last_and_not_to_who_wants_the_untried(
        self, queue: SqliteQueue, clock: Clock
    ) -> None:
        add(queue, 2)
        assert claim(queue).index == 0
        clock.now += LEASE_SECONDS + 1
        assert claim(queue, untried=True).index == 1
        assert queue.claim("owner", LEASE_SECONDS, untried=True) is None
        assert (claim(queue).index, queue.claim("owner", LEASE_SECONDS)) == (0, None)

    def test_who_opens_it_alone_has_what_was_running_at_once(self, tmp_path: Path, clock: Clock) -> None:
        before = SqliteQueue(tmp_path, clock=clock)
        add(before, 2)
        first = claim(before)
        before.finish(claim(before), "1", 1)
        before.close()
        after = SqliteQueue(tmp_path, alone=True, clock=clock)
        again = claim(after)
        assert (again.index, again.attempts, again.token == first.token) == (0, 2, False)
        assert after.claim("owner", LEASE_SECONDS) is None
        after.close()


class TestUploads:
    def upload(self, queue: SqliteQueue, data: bytes = b"audio") -> str:
        kept = queue.keep(io.BytesIO(data))
        return queue.add(NewBatch([NewItem("a", "{}", upload=kept)], "{}"))[0]

    def test_it_lies_in_a_private_file_of_another_name_until_its_item_is_done(
        self, queue: SqliteQueue, tmp_path: Path
    ) -> None:
        self.upload(queue)
        (path,) = uploads(tmp_path)
        assert path.stat().st_mode & 0o777 == 0o600
        assert (tmp_path / "batches.sqlite3").stat().st_mode & 0o777 == 0o600
        item = claim(queue)
        with queue.audio(item) as file:
            assert file.read() == b"audio"
        queue.finish(item, "1", 1)
        assert uploads(tmp_path) == []

    @pytest.mark.parametrize("end", ["fail", "cancel", "forget"])
    def test_it_is_deleted_with_what_needed_it(self, queue: SqliteQueue, tmp_path: Path, end: str) -> None:
        batch_id = self.upload(queue)
        if end == "fail":
            queue.fail(claim(queue), "1")
        else:
            assert getattr(queue, end)(batch_id)
        assert uploads(tmp_path) == []

    def test_one_that_no_batch_was_added_for_goes_when_it_is_opened(self, tmp_path: Path) -> None:
        before = SqliteQueue(tmp_path, alone=True)
        orphan, dropped = before.keep(io.BytesIO(b"a")), before.keep(io.BytesIO(b"b"))
        before.discard([dropped])
        assert [path.name for path in uploads(tmp_path)] == [orphan.name]
        self.upload(before)
        before.close()
        after = SqliteQueue(tmp_path, alone=True)
        assert len(uploads(tmp_path)) == 1
        assert orphan.name not in {path.name for path in uploads(tmp_path)}
        after.close()

    def test_one_that_somebody_deleted_says_so(self, queue: SqliteQueue, tmp_path: Path) -> None:
        self.upload(queue)
        uploads(tmp_path)[0].unlink()
        with pytest.raises(AudioNotFoundError, match="send it again"):
            queue.audio(claim(queue))


class TestKeys:
    def test_the_same_again_is_the_batch_that_is_there(self, queue: SqliteQueue) -> None:
        first, new = queue.add(batch(2, "key"))
        assert new
        assert queue.add(batch(2, "key")) == (first, False)
        assert queue.add(batch(2, "other"))[1]
        assert queue.add(batch(2))[1]
        assert queue.count_queued() == 6

    def test_another_one_is_refused(self, queue: SqliteQueue) -> None:
        queue.add(batch(2, "key"))
        for other in (batch(3, "key"), batch(2, "key", '{"model": "x"}')):
            with pytest.raises(BatchKeyTakenError, match="'key'"):
                queue.add(other)
        assert queue.count_queued() == 2

    def test_uploads_are_compared_by_their_bytes(self, queue: SqliteQueue) -> None:
        def send(data: bytes) -> bool:
            kept = queue.keep(io.BytesIO(data))
            return queue.add(NewBatch([NewItem("a", "{}", upload=kept)], "{}", "key"))[1]

        assert (send(b"one"), send(b"one")) == (True, False)
        with pytest.raises(BatchKeyTakenError):
            send(b"two")

    def test_each_sender_has_their_own(self, queue: SqliteQueue) -> None:
        senders = ("one", "two", None)
        ids = [queue.add(replace(batch(n, "key"), sender=sender))[0] for n, sender in enumerate(senders, 1)]
        assert len(set(ids)) == 3
        assert queue.add(replace(batch(2, "key"), sender="two")) == (ids[1], False)
        with pytest.raises(BatchKeyTakenError, match="'key'"):
            queue.add(replace(batch(1, "key"), sender="two"))
        assert [told(queue, batch_id).sender for batch_id in ids] == [*senders]
        for sender, seen in (("one", [ids[2], ids[0]]), ("two", [ids[2], ids[1]]), (None, ids[::-1])):
            assert [status.id for status in queue.batches(None, 9, sender)] == seen
        assert [status.id for status in queue.batches(ids[2], 9, "two")] == [ids[1]]

    def test_many_at_once_make_one_batch(self, queue: SqliteQueue) -> None:
        with ThreadPoolExecutor(8) as pool:
            added = list(pool.map(lambda _: queue.add(batch(1, "key")), range(16)))
        assert len({batch_id for batch_id, _ in added}) == 1
        assert sum(new for _, new in added) == 1


class TestEnds:
    def test_a_cancelled_batch_keeps_what_is_finished_and_runs_no_more(self, queue: SqliteQueue) -> None:
        batch_id = add(queue, 3)
        queue.finish(claim(queue), "1", 1)
        running = claim(queue)
        assert queue.cancel(batch_id)
        assert states(queue, batch_id) == ["done", "cancelled", "cancelled"]
        assert told(queue, batch_id).state == "cancelled"
        assert list(queue.renew([running], LEASE_SECONDS)) == [running]
        assert not queue.finish(running, "1", 1)
        assert not queue.release(running)
        assert queue.claim("owner", LEASE_SECONDS) is None
        assert not queue.cancel(batch_id)
        assert not queue.cancel("batch_none")

    def test_a_batch_that_has_ended_is_not_cancelled(self, queue: SqliteQueue) -> None:
        batch_id = add(queue)
        queue.finish(claim(queue), "1", 1)
        assert not queue.cancel(batch_id)
        assert told(queue, batch_id).state == "done"

    def test_a_forgotten_one_is_gone_whole(self, queue: SqliteQueue) -> None:
        batch_id, other = add(queue, 2), add(queue)
        running = claim(queue)
        assert queue.forget(batch_id)
        assert (queue.status(batch_id), queue.items(batch_id, -1, 9)) == (None, [])
        assert list(queue.renew([running], LEASE_SECONDS)) == [running]
        assert not queue.finish(running, "1", 1)
        assert not queue.forget(batch_id)
        assert claim(queue).batch_id == other

    def test_what_has_ended_long_ago_is_forgotten(self, queue: SqliteQueue, clock: Clock) -> None:
        old, open_one = add(queue), add(queue)
        queue.finish(claim(queue), "1", 1)
        clock.now += 100
        assert queue.forget_finished(101) == 0
        assert queue.forget_finished(100) == 1
        assert [status.id for status in queue.batches(None, 9)] == [open_one]
        assert queue.status(old) is None

    def test_batches_are_told_the_newest_first(self, queue: SqliteQueue) -> None:
        ids = [add(queue) for _ in range(3)]
        assert [status.id for status in queue.batches(None, 2)] == [ids[2], ids[1]]
        assert [status.id for status in queue.batches(ids[1], 2)] == [ids[0]]


# The tables as the first version made them, with a batch of one item that is done and one that waits.
VERSION_1 = """
CREATE TABLE batches (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, key TEXT UNIQUE, sha256 TEXT NOT NULL,
    settings TEXT NOT NULL, created REAL NOT NULL, started REAL, finished REAL, cancelled INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE items (
    number INTEGER PRIMARY KEY, batch INTEGER NOT NULL REFERENCES batches (number) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'done', 'failed', 'cancelled')),
    attempts INTEGER NOT NULL DEFAULT 0, retries INTEGER NOT NULL DEFAULT 0, due REAL NOT NULL DEFAULT 0, token TEXT,
    owner TEXT, lease_end REAL, audio_seconds REAL, name TEXT NOT NULL, url TEXT, upload TEXT, options TEXT NOT NULL,
    error TEXT, result TEXT, UNIQUE (batch, position)
);
CREATE INDEX open_items ON items (attempts, number) WHERE state IN ('queued', 'running');
INSERT INTO batches (number, id, key, sha256, settings, created, started)
    VALUES (1, 'batch_1', 'key', :sha256, '{}', 900, 901);
INSERT INTO items (batch, position, state, name, url, options, result, audio_seconds)
    VALUES (1, 0, 'done', 'item 0', 'http://a.example/0', '{}', '"text"', 2.5);
INSERT INTO items (batch, position, state, attempts, name, url, options)
    VALUES (1, 1, 'running', 1, 'item 1', 'http://a.example/1', '{}');
PRAGMA user_version = 1;
"""


class TestVersions:
    @pytest.fixture
    def old(self, tmp_path: Path) -> Path:
        asked = batch(2)
        rows = [repr((item.name, item.url, None, item.options)) for item in asked.items]
        digest = hashlib.sha256("".join([asked.settings, *rows]).encode()).hexdigest()
        with sqlite3.connect(tmp_path / "batches.sqlite3") as db:
            db.executescript(VERSION_1.replace(":sha256", f"'{digest}'"))
        db.close()
        return tmp_path

    def test_what_the_first_one_wrote_is_told_and_worked_off(self, old: Path) -> None:
        for _ in range(2):  # a database that was brought up to date is opened like any other
            queue = SqliteQueue(old, alone=True)
            assert states(queue, "batch_1") == ["done", "queued"]
            assert queue.items("batch_1", -1, 1)[0].result == '"text"'
            assert [status.id for status in queue.batches(None, 9, "anybody")] == ["batch_1"]
            assert queue.add(batch(2, "key")) == ("batch_1", False)
            queue.close()
        queue = SqliteQueue(old, alone=True)
        item = claim(queue)
        assert (item.index, item.attempts, item.enhance) == (1, 2, None)
        assert queue.finish(item, '"text"', 2.5, '"enhancement"')
        assert (told(queue, "batch_1").state, told(queue, "batch_1").audio_seconds) == ("done", 5.0)
        queue.close()

    def test_its_tables_are_then_those_of_a_new_one(self, old: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
        def tables(directory: Path) -> list[list[tuple[Any, ...]]]:
            SqliteQueue(directory).close()
            with sqlite3.connect(directory / "batches.sqlite3") as db:
                kinds = (
                    "table_info(batches)",
                    "table_info(items)",
                    "index_list(batches)",
                    "index_list(items)",
                    "user_version",
                )
                found = [db.execute(f"PRAGMA {kind}").fetchall() for kind in kinds]
            db.close()
            return found

        assert tables(old) == tables(tmp_path_factory.mktemp("new"))


WORK_OFF = """
import sys
from pathlib import Path
from whisperlib.batches.sqlite import SqliteQueue

queue = SqliteQueue(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
done = 0
while item := queue.claim(sys.argv[2], 60.0):
    done += queue.finish(item, f'"{item.index}"', 1.0)
print(done)
"""


class TestManyAtOnce:
    def test_many_threads_do_each_item_once(self, queue: SqliteQueue) -> None:
        batch_id = add(queue, 100)
        lock, seen = threading.Lock(), list[int]()

        def work(owner: int) -> None:
            while item := queue.claim(str(owner), LEASE_SECONDS):
                with lock:
                    seen.append(item.index)
                assert queue.finish(item, f'"{item.index}"', 1.0)

        with ThreadPoolExecutor(8) as pool:
            for done in [pool.submit(work, owner) for owner in range(8)]:
                done.result()
        assert sorted(seen) == list(range(100))
        assert told(queue, batch_id).state == "done"

    def test_two_processes_share_a_file(self, queue: SqliteQueue, tmp_path: Path) -> None:
        batch_id = add(queue, 40)
        script = tmp_path / "work_off.py"
        script.write_text(WORK_OFF, encoding="utf-8")
        children = [
            subprocess.Popen(
                [sys.executable, str(script), str(tmp_path), owner],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            for owner in ("one", "two")
        ]
        for child in children:
            assert child.stdout
            assert child.stdout.readline() == "ready\n"
        finished = [child.communicate("go\n")[0] for child in children]
        assert [child.returncode for child in children] == [0, 0]
        assert sum(map(int, finished)) == 40
        results = [item.result for item in queue.items(batch_id, -1, 1000)]
        assert results == [json.dumps(str(index)) for index in range(40)]

    def test_what_a_killed_process_wrote_is_whole(self, tmp_path: Path, run_python: RunPython) -> None:
        child = run_python(
            f"""
import os, signal
from pathlib import Path
from whisperlib.batches import NewBatch, NewItem
from whisperlib.batches.sqlite import SqliteQueue
queue = SqliteQueue(Path({str(tmp_path)!r}), alone=True)
queue.add(NewBatch([NewItem(str(i), "{{}}", url="http://a.example/") for i in range(3)], "{{}}"))
queue.finish(queue.claim("one", 60.0), "1", 1.0)
queue.claim("one", 60.0)
os.kill(os.getpid(), signal.SIGKILL)
"""
        )
        assert child.returncode == -signal.SIGKILL, child.stderr
        queue = SqliteQueue(tmp_path, alone=True)
        (status,) = queue.batches(None, 9)
        assert states(queue, status.id) == ["done", "queued", "queued"]
        assert [claim(queue).index for _ in range(2)] == [2, 1]  # first the one that has done nobody harm
        queue.close()


class TestPlace:
    def test_two_servers_do_not_share_it(self, tmp_path: Path) -> None:
        first = SqliteQueue(tmp_path, alone=True)
        with pytest.raises(BatchStoreError, match="another server keeps its batches"):
            SqliteQueue(tmp_path, alone=True)
        first.close()
        SqliteQueue(tmp_path, alone=True).close()

    def test_a_file_that_is_no_database(self, tmp_path: Path) -> None:
        (tmp_path / "batches.sqlite3").write_bytes(b"not a database, whatever its name says. " * 100)
        with pytest.raises(BatchStoreError, match=r"batches\.sqlite3: file is not a database"):
            SqliteQueue(tmp_path, alone=True)

    @pytest.mark.parametrize("version", [0, VERSION + 1])
    def test_tables_of_another_version(self, tmp_path: Path, version: int) -> None:
        with sqlite3.connect(tmp_path / "batches.sqlite3") as db:
            db.execute("CREATE TABLE batches (id TEXT)")
            db.execute(f"PRAGMA user_version = {version}")
        db.close()
        with pytest.raises(BatchStoreError, match=f"tables of version {version}, and this whisperlib reads"):
            SqliteQueue(tmp_path, alone=True)

    def test_a_directory_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(BatchStoreError, match="cannot be kept in .*Not a directory.*WHISPER_BATCHES"):
            SqliteQueue(tmp_path / "file" / "batches")

    def test_after_closing_nothing_is_opened_again(self, queue: SqliteQueue) -> None:
        queue.close()
        queue.close()
        with pytest.raises(BatchStoreError):
            queue.count_queued()
        with ThreadPoolExecutor(1) as pool, pytest.raises(BatchStoreError, match="closed"):
            pool.submit(queue.count_queued).result()

    def test_the_settings_name_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        open_queue(Settings(batches="auto")).close()
        assert (tmp_path / "state" / "whisperlib" / "batches").is_dir()
        open_queue(Settings(batches=str(tmp_path / "own"))).close()
        assert (tmp_path / "own").is_dir()
        with pytest.raises(BatchStoreError, match="off"):
            open_queue(Settings(batches="off"))


class TestRoom:
    MEGABYTE = bytes(1_000_000)

    def keep(self, queue: SqliteQueue) -> Upload:
        return queue.keep(io.BytesIO(self.MEGABYTE))

    def test_audio_beyond_the_room_is_refused_and_leaves_nothing(self, tmp_path: Path) -> None:
        queue = SqliteQueue(tmp_path, max_bytes=2_500_000)
        first, second = self.keep(queue), self.keep(queue)
        queue.check_room(100_000)
        for refuse in (lambda: self.keep(queue), lambda: queue.check_room(500_000)):
            with pytest.raises(BatchesFullError, match=r"above WHISPER_BATCH_MAX_BYTES, 2500000: delete batches"):
                refuse()
        assert {path.name for path in uploads(tmp_path)} == {first.name, second.name}
        queue.discard([first])
        with pytest.raises(BatchesFullError):
            queue.keep(io.BytesIO(2 * self.MEGABYTE))
        self.keep(queue)
        queue.close()

    def test_what_is_there_counts_when_it_is_opened_again_and_goes_with_its_item(self, tmp_path: Path) -> None:
        first = SqliteQueue(tmp_path, alone=True)
        first.add(NewBatch([NewItem("a", "{}", upload=self.keep(first))], "{}"))
        first.close()
        queue = SqliteQueue(tmp_path, alone=True, max_bytes=1_500_000)
        with pytest.raises(BatchesFullError):
            self.keep(queue)
        queue.finish(claim(queue), '""', 1.0)
        self.keep(queue)
        queue.close()

    def test_lists_and_results_count_until_they_are_forgotten(self, tmp_path: Path) -> None:
        queue = SqliteQueue(tmp_path, max_bytes=1_000_000)
        batch_id = add(queue)
        queue.finish(claim(queue), f'"{"x" * 1_000_000}"', 1.0)
        with pytest.raises(BatchesFullError):
            add(queue)
        queue.forget(batch_id)
        add(queue)
        queue.close()

    def test_no_more_items_wait_than_may(self, tmp_path: Path) -> None:
        queue = SqliteQueue(tmp_path, max_queued=3)
        batch_id, _ = queue.add(batch(2, key="a"))
        with pytest.raises(OverloadedError, match="2 items of batches wait, and 2 more would be above"):
            queue.add(batch(2, key="b"))
        assert queue.add(batch(2, key="a")) == (batch_id, False)
        claim(queue)
        assert queue.add(batch(2, key="b"))[1]
        queue.close()
