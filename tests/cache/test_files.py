"""Results in real files: private, whole, bounded, and never in the way."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from whisperlib.cache.files import LEFT_OVER_SECONDS, FileStore
from whisperlib.cache.store import Stats

VALUE = b"v" * 100


def key_of(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def open_files(directory: Path, **limits: Any) -> FileStore:
    return FileStore(directory, **{"max_bytes": 10_000, "max_age_seconds": 60.0, **limits})


def sizes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def age(directory: Path, key: str, *, used: float = 0, made: float = 0) -> None:
    now = time.time()
    os.utime(directory / key[:2] / key, (now - used, now - made))


def test_what_was_put_is_there_until_it_is_deleted(tmp_path: Path) -> None:
    store = open_files(tmp_path)
    assert store.get(key_of(1)) is None
    store.put(key_of(1), VALUE)
    assert store.get(key_of(1)) == VALUE
    assert open_files(tmp_path).get(key_of(1)) == VALUE
    store.put(key_of(1), b"other")
    assert store.get(key_of(1)) == b"other"
    store.delete(key_of(1))
    store.delete(key_of(1))
    store.touch(key_of(1))
    assert store.get(key_of(1)) is None
    store.close()
    store.close()


def test_files_are_the_user_s_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        open_files(tmp_path / "a" / "results").put(key_of(1), VALUE)
    finally:
        os.umask(before)
    shard = tmp_path / "a" / "results" / key_of(1)[:2]
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (shard.parent, shard, shard / key_of(1))]
    assert modes == [0o700, 0o700, 0o600]


def test_the_size_stays_within_the_limit_and_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    store = open_files(tmp_path, max_bytes=1000)
    for number in range(10):
        store.put(key_of(number), VALUE)
        age(tmp_path, key_of(number), used=1000 - number)
    store.touch(key_of(0))
    store.put(key_of(10), VALUE)
    assert sizes(tmp_path) <= 1000
    there = [number for number in range(11) if store.get(key_of(number))]
    assert there == [0, *range(11 - len(there) + 1, 11)]
    assert store.stats() == Stats(sizes(tmp_path), 11 - len(there))
    assert open_files(tmp_path).stats().size_bytes is None
    assert open_files(tmp_path).count() == Stats(sizes(tmp_path), 0)


def test_many_values_never_take_more_than_the_limit(tmp_path: Path) -> None:
    store = open_files(tmp_path, max_bytes=2000)
    for number in range(200):
        store.put(key_of(number), b"x" * (number % 37 * 10))
        assert sizes(tmp_path) <= 2000


def test_a_value_larger_than_the_limit_is_not_kept_and_drives_nothing_out(tmp_path: Path) -> None:
    store = open_files(tmp_path, max_bytes=1000)
    store.put(key_of(1), VALUE)
    store.put(key_of(2), b"x" * 1001)
    assert (store.get(key_of(1)), store.get(key_of(2))) == (VALUE, None)
    store.put(key_of(3), b"x" * 1000)
    assert (store.get(key_of(1)), store.get(key_of(3))) == (None, b"x" * 1000)


def test_what_is_too_old_is_forgotten_however_often_it_is_used(tmp_path: Path) -> None:
    store = open_files(tmp_path, max_age_seconds=60)
    for number in (1, 2):
        store.put(key_of(number), VALUE)
        age(tmp_path, key_of(number), made=61)
    store.touch(key_of(1))
    assert store.get(key_of(1)) is None
    assert not list(tmp_path.rglob(key_of(1)))
    open_files(tmp_path, max_age_seconds=60).put(key_of(3), VALUE)  # the first value of a process has it look round
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [key_of(3)]


def test_what_is_too_old_is_deleted_though_nobody_asks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_files(tmp_path)
    store.put(key_of(1), VALUE)
    store.put(key_of(2), VALUE)
    age(tmp_path, key_of(1), made=61)
    store.put(key_of(3), VALUE)  # counted a moment ago
    assert (sizes(tmp_path), store.stats().evictions) == (3 * len(VALUE), 0)
    monkeypatch.setattr("whisperlib.cache.files.RECOUNT_SECONDS", 0.0)
    store.put(key_of(4), VALUE)
    assert (sizes(tmp_path), store.stats().evictions) == (3 * len(VALUE), 1)


def test_what_a_killed_process_left_is_cleared_away_and_what_one_writes_is_not(tmp_path: Path) -> None:
    open_files(tmp_path).put(key_of(1), VALUE)
    shard = tmp_path / key_of(1)[:2]
    old, new = shard / ".old.part", shard / ".new.part"
    for path in (old, new):
        path.touch()
    os.utime(old, (0, time.time() - LEFT_OVER_SECONDS - 1))
    open_files(tmp_path).put(key_of(2), VALUE)
    assert (old.exists(), new.exists()) == (False, True)


def test_other_files_of_the_directory_are_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "letters" / "to my aunt"
    other.parent.mkdir()
    other.write_bytes(b"x" * 5000)
    store = open_files(tmp_path, max_bytes=1024)
    for number in range(20):
        store.put(key_of(number), VALUE)
    assert other.exists()


@pytest.mark.parametrize("place", ["directory", "shard", "entry"])
def test_something_else_in_its_place_is_a_miss_that_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    """What a full or read-only disk does to a user, this does to root as well."""
    directory, key = tmp_path / "results", key_of(1)
    if place == "entry":
        (directory / key[:2] / key / "x").mkdir(parents=True)
    else:
        blocked = {"directory": directory, "shard": directory / key[:2]}[place]
        blocked.parent.mkdir(exist_ok=True)
        blocked.write_text("in the way", encoding="utf-8")
    store = open_files(directory)
    with caplog.at_level(logging.INFO, "whisperlib.cache"):
        for _ in range(3):
            store.put(key, VALUE)
            assert store.get(key) is None
        store.touch(key)
        store.delete(key)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert str(directory) in caplog.text
        if place == "directory":
            directory.unlink()
            store.put(key, VALUE)
            assert store.get(key) == VALUE
            assert caplog.records[-1].message == f"results are cached in {directory} again"
    assert not list(tmp_path.rglob("*.part"))


def test_a_full_disk_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    store = open_files(tmp_path)
    monkeypatch.setattr(Path, "replace", full)  # a double: a disk of its own cannot be had here
    store.put(key_of(1), VALUE)
    assert store.get(key_of(1)) is None
    assert sizes(tmp_path) == 0


def test_threads_may_write_read_and_make_room_at_once(tmp_path: Path) -> None:
    store, limit = open_files(tmp_path, max_bytes=3000), 3000
    gate = threading.Barrier(8)

    def work(thread: int) -> set[bytes | None]:
        gate.wait()
        seen: set[bytes | None] = set()
        for number in range(100):
            store.put(key_of(number % 50), VALUE)
            store.touch(key_of(number % 50))
            seen.add(store.get(key_of((number + thread) % 50)))
        return seen

    with ThreadPoolExecutor(8) as pool:
        assert set().union(*pool.map(work, range(8))) <= {None, VALUE}
    store.put(key_of(1), VALUE)
    assert sizes(tmp_path) <= limit + 8 * len(VALUE)


WRITER = """
import hashlib, sys
from pathlib import Path
from whisperlib.cache.files import FileStore

store = FileStore(Path(sys.argv[1]), max_bytes=4000, max_age_seconds=60)
for number in range(400):
    key = hashlib.sha256(str(number % 60).encode()).hexdigest()
    store.put(key, b"v" * 100)
    assert store.get(key) in {None, b"v" * 100}
"""


def test_processes_may_share_a_directory(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) for _ in range(2)]
    for process in processes:
        _, problems = process.communicate(timeout=120)
        assert (process.returncode, problems) == (0, b"")
    assert 0 < sizes(tmp_path) <= 4000 + 2 * 500  # an eighth of the limit for each
