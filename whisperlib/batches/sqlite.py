"""Batches in an SQLite database, and uploaded audio in files beside it."""
# ruff: noqa: S608  (statements are put together from words of this file; values are always parameters)

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import filelock

from whisperlib.batches.queue import (
    ITEM_STATES,
    BatchStatus,
    Item,
    ItemState,
    ItemStatus,
    NewBatch,
    Upload,
)
from whisperlib.errors import (
    AudioNotFoundError,
    BatchesFullError,
    BatchKeyTakenError,
    BatchStoreError,
    OverloadedError,
)

PRIVATE_DIRECTORY, PRIVATE_FILE = 0o700, 0o600
BUSY_SECONDS = 30.0  # that a transaction waits for another
FULL_SECONDS = 60.0  # when to come back where too many items wait
_READ_BYTES = 1 << 20

_TABLES = """
CREATE TABLE batches (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    key TEXT UNIQUE,
    sha256 TEXT NOT NULL,
    settings TEXT NOT NULL,
    created REAL NOT NULL,
    started REAL,
    finished REAL,
    cancelled INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE items (
    number INTEGER PRIMARY KEY,
    batch INTEGER NOT NULL REFERENCES batches (number) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'done', 'failed', 'cancelled')),
    attempts INTEGER NOT NULL DEFAULT 0,
    retries INTEGER NOT NULL DEFAULT 0,
    due REAL NOT NULL DEFAULT 0,
    token TEXT,
    owner TEXT,
    lease_end REAL,
    audio_seconds REAL,
    name TEXT NOT NULL,
    url TEXT,
    upload TEXT,
    options TEXT NOT NULL,
    error TEXT,
    result TEXT,
    UNIQUE (batch, position)
);
CREATE INDEX open_items ON items (attempts, number) WHERE state IN ('queued', 'running');
"""
# What each version has beside the one before: a database of any version is brought to the last when it is opened.
_VERSIONS = (
    _TABLES,
    "ALTER TABLE items ADD COLUMN enhance TEXT; ALTER TABLE items ADD COLUMN enhancement TEXT",
    "ALTER TABLE batches ADD COLUMN sender TEXT;CREATE INDEX open_batches ON batches (settings) WHERE finished IS NULL",
)
VERSION = len(_VERSIONS)
_OPEN = "state IN ('queued', 'running')"
_GIVEN = ("name", "url", "upload", "options", "settings", "retries", "enhance", "result")  # to who claims an item
_NO_LEASE = "token = NULL, owner = NULL, lease_end = NULL"
_LEASED = f"batch = (SELECT number FROM batches WHERE id = ?) AND position = ? AND token = ? AND {_OPEN}"


class SqliteQueue:
    """Batches in `directory`, which is made if it is not there; only this user may read what lies in it.

    `alone`: no other process may have the directory like that meanwhile, so that what was running when it is opened
    runs no more, and is queued again at once. Audio and database take `max_bytes` at most before the results of what
    is queued, and `max_queued` items wait; None: any. `clock` gives seconds since 1970.

    Raises BatchStoreError where the directory cannot be written, another process has it, or the database is none, or
    one of another version.
    """

    def __init__(
        self,
        directory: Path,
        *,
        alone: bool = False,
        max_bytes: int | None = None,
        max_queued: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._max_queued = max_queued
        self._upload_bytes = 0
        self._counting = threading.Lock()
        self._uploads = directory / "uploads"
        self._file = directory / "batches.sqlite3"
        self._clock = clock
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._opening = threading.Lock()
        self._closed = False
        self._lock = filelock.FileLock(directory / "lock", timeout=0, thread_local=False) if alone else None
        try:
            self._make_files()
            self._make_tables()
            if alone:
                self._take_over()
            self._upload_bytes = sum(map(_size_of, self._uploads.iterdir()))
        except BaseException:
            self.close()
            raise

    def check_room(self, size_bytes: int) -> None:
        """Reckon with what the database uses of its file."""
        used_bytes = self._upload_bytes + self._database_bytes()
        if self._max_bytes is not None and used_bytes + size_bytes > self._max_bytes:
            raise BatchesFullError(
                f"batches take {used_bytes} bytes, and {size_bytes} more would be above WHISPER_BATCH_MAX_BYTES, "
                f"{self._max_bytes}: delete batches whose results you have, or send less"
            )

    def keep(self, audio: BinaryIO) -> Upload:
        """Write audio to a file of a random name."""
        digest, name, size_bytes = hashlib.sha256(), secrets.token_hex(16), 0
        path = self._uploads / name
        try:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE), "wb") as file:
                while data := audio.read(_READ_BYTES):
                    with self._counting:
                        self.check_room(len(data))
                        self._upload_bytes += len(data)
                    size_bytes += len(data)
                    digest.update(data)
                    file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException as error:
            self._unlink(name, size_bytes)
            if isinstance(error, OSError):
                raise self._failure(error) from error
            raise
        return Upload(name, digest.hexdigest())

    def discard(self, uploads: Collection[Upload]) -> None:
        """Delete the files."""
        self._remove([upload.name for upload in uploads])

    def add(self, batch: NewBatch) -> tuple[str, bool]:
        """Keep a batch, or find the one of its key."""
        digest = _digest(batch)
        # Unique for each sender, in the column that is unique for all: no key has a space.
        key = batch.key and " ".join(filter(None, [batch.sender, batch.key]))
        with self._transaction() as db:
            known = db.execute("SELECT id, sha256 FROM batches WHERE key = ?", (key,)).fetchone()
            if known:
                if known["sha256"] != digest:
                    raise BatchKeyTakenError(f"the key {batch.key!r} is that of another batch: take a new one")
                return known["id"], False
            self._check_queued(db, len(batch.items))
            self.check_room(0)
            batch_id = f"batch_{secrets.token_hex(16)}"
            number = db.execute(
                "INSERT INTO batches (id, key, sha256, settings, created, sender) VALUES (?, ?, ?, ?, ?, ?)",
                (batch_id, key, digest, batch.settings, self._clock(), batch.sender),
            ).lastrowid
            db.executemany(
                "INSERT INTO items (batch, position, state, name, url, upload, options, enhance)"
                " VALUES (?, ?, 'queued', ?, ?, ?, ?, ?)",
                [
                    (
                        number,
                        position,
                        item.name,
                        item.url,
                        item.upload and item.upload.name,
                        item.options,
                        item.enhance,
                    )
                    for position, item in enumerate(batch.items)
                ],
            )
        return batch_id, True

    def open_settings(self) -> Collection[str]:
        """Tell the settings of what has not ended."""
        with self._transaction("BEGIN") as db:
            return [row[0] for row in db.execute("SELECT DISTINCT settings FROM batches WHERE finished IS NULL")]

    def claim(
        self, owner: str, lease_seconds: float, *, untried: bool = False, settings: Collection[str] | None = None
    ) -> Item | None:
        """Take the next item."""
        now, token = self._clock(), secrets.token_hex(16)
        among = "" if settings is None else f" AND batches.settings IN ({_marks(settings)})"
        with self._transaction() as db:
            row = db.execute(
                "SELECT items.*, batches.id AS batch_id, batches.settings FROM items"
                " JOIN batches ON batches.number = items.batch"
                f" WHERE {_OPEN} AND attempts <= ?"
                f" AND ((state = 'queued' AND due <= ?) OR (state = 'running' AND lease_end < ?)){among}"
                " ORDER BY attempts, items.number LIMIT 1",
                (0 if untried else 1 << 30, now, now, *(settings or ())),
            ).fetchone()
            if row is None:
                return None
            db.execute(
                "UPDATE items SET state = 'running', attempts = attempts + 1, token = ?, owner = ?, lease_end = ?"
                " WHERE number = ?",
                (token, owner, now + lease_seconds, row["number"]),
            )
            db.execute("UPDATE batches SET started = coalesce(started, ?) WHERE number = ?", (now, row["batch"]))
        return Item(
            batch_id=row["batch_id"],
            index=row["position"],
            token=token,
            attempts=row["attempts"] + 1,
            **{name: row[name] for name in _GIVEN},
        )

    def audio(self, item: Item) -> BinaryIO:
        """Open the file. Raises AudioNotFoundError where somebody has deleted it."""
        try:
            return (self._uploads / str(item.upload)).open("rb")
        except FileNotFoundError:
            raise AudioNotFoundError("the uploaded audio is not there any more: send it again") from None
        except OSError as error:
            raise self._failure(error) from error

    def renew(self, items: Collection[Item], lease_seconds: float) -> Collection[Item]:
        """Renew leases; give those that are lost."""
        until = self._clock() + lease_seconds
        with self._transaction() as db:
            return [
                item
                for item in items
                if not db.execute(f"UPDATE items SET lease_end = ? WHERE {_LEASED}", (until, *_lease(item))).rowcount
            ]

    def save(self, item: Item, result: str) -> bool:
        """Write a result that is told when its item is done."""
        with self._transaction() as db:
            return bool(db.execute(f"UPDATE items SET result = ? WHERE {_LEASED}", (result, *_lease(item))).rowcount)

    def finish(self, item: Item, result: str, audio_seconds: float, enhancement: str | None = None) -> bool:
        """Write a result."""
        return self._end(item, "done", result=result, audio_seconds=audio_seconds, enhancement=enhancement)

    def fail(self, item: Item, error: str) -> bool:
        """Write an error."""
        return self._end(item, "failed", error=error)

    def release(self, item: Item, delay_seconds: float = 0.0) -> bool:
        """Queue an item again."""
        return self._requeue(item, delay_seconds)

    def retry(self, item: Item, delay_seconds: float) -> bool:
        """Queue an item again, and count it."""
        return self._requeue(item, delay_seconds, retries=1)

    def abandon(self, item: Item) -> bool:
        """Queue an item again, behind those that did no harm."""
        return self._requeue(item, 0.0, counts=True)

    def status(self, batch_id: str) -> BatchStatus | None:
        """Tell of a batch."""
        with self._transaction("BEGIN") as db:
            row = db.execute("SELECT * FROM batches WHERE id = ?", (batch_id,)).fetchone()
            return _status(db, row) if row else None

    def batches(self, after: str | None, limit: int, sender: str | None = None) -> list[BatchStatus]:
        """Tell of batches."""
        with self._transaction("BEGIN") as db:
            rows = db.execute(
                "SELECT * FROM batches WHERE (? IS NULL OR number < (SELECT number FROM batches WHERE id = ?))"
                " AND (? IS NULL OR sender IS NULL OR sender = ?) ORDER BY number DESC LIMIT ?",
                (after, after, sender, sender, limit),
            )
            return [_status(db, row) for row in rows.fetchall()]

    def items(
        self, batch_id: str, after: int, limit: int, states: Collection[ItemState] = ITEM_STATES
    ) -> list[ItemStatus]:
        """Tell of items."""
        with self._transaction("BEGIN") as db:
            rows = db.execute(
                "SELECT position, name, state, options, CASE state WHEN 'done' THEN result END, enhancement, error"
                " FROM items"
                " WHERE batch = (SELECT number FROM batches WHERE id = ?) AND position > ?"
                f" AND state IN ({_marks(states)}) ORDER BY position LIMIT ?",
                (batch_id, after, *states, limit),
            )
            return [ItemStatus(*row) for row in rows.fetchall()]

    def cancel(self, batch_id: str) -> bool:
        """End what is left."""
        with self._transaction() as db:
            batch = db.execute("SELECT number FROM batches WHERE id = ? AND finished IS NULL", (batch_id,)).fetchone()
            if batch is None:
                return False
            uploads = _uploads_of(db, batch["number"])
            db.execute(
                f"UPDATE items SET state = 'cancelled', upload = NULL, {_NO_LEASE} WHERE batch = ? AND {_OPEN}",
                (batch["number"],),
            )
            db.execute(
                "UPDATE batches SET cancelled = 1, finished = ? WHERE number = ?", (self._clock(), batch["number"])
            )
        self._remove(uploads)
        return True

    def forget(self, batch_id: str) -> bool:
        """Delete a batch."""
        return bool(self._forget("id = ?", batch_id))

    def forget_finished(self, age_seconds: float) -> int:
        """Delete old batches."""
        return self._forget("finished <= ?", self._clock() - age_seconds)

    def count_queued(self) -> int:
        """Count what waits."""
        with self._transaction("BEGIN") as db:
            return _count_queued(db)

    def close(self) -> None:
        """Close the connections of all threads."""
        with self._opening:
            self._closed = True
            while self._connections:
                self._connections.pop().close()
        if self._lock:
            self._lock.release()

    def _end(
        self,
        item: Item,
        state: ItemState,
        *,
        result: str | None = None,
        enhancement: str | None = None,
        error: str | None = None,
        audio_seconds: float | None = None,
    ) -> bool:
        with self._transaction() as db:
            written = db.execute(
                "UPDATE items SET state = ?, result = ?, enhancement = ?, error = ?, audio_seconds = ?, upload = NULL,"
                f" {_NO_LEASE} WHERE {_LEASED}",
                (state, result, enhancement, error, audio_seconds, *_lease(item)),
            ).rowcount
            if not written:
                return False
            db.execute(
                "UPDATE batches SET finished = ? WHERE id = ?"
                f" AND NOT EXISTS (SELECT 1 FROM items WHERE batch = batches.number AND {_OPEN})",
                (self._clock(), item.batch_id),
            )
        self._remove([item.upload] if item.upload else [])
        return True

    def _requeue(self, item: Item, delay_seconds: float, *, retries: int = 0, counts: bool = False) -> bool:
        with self._transaction() as db:
            changed = db.execute(
                "UPDATE items SET state = 'queued', attempts = attempts - ?, retries = retries + ?, due = ?,"
                f" {_NO_LEASE} WHERE {_LEASED}",
                (not counts, retries, self._clock() + delay_seconds, *_lease(item)),
            ).rowcount
        return bool(changed)

    def _forget(self, which: str, value: object) -> int:
        with self._transaction() as db:
            numbers = [row[0] for row in db.execute(f"SELECT number FROM batches WHERE {which}", (value,)).fetchall()]
            uploads = [name for number in numbers for name in _uploads_of(db, number)]
            db.executemany("DELETE FROM batches WHERE number = ?", [(number,) for number in numbers])
        self._remove(uploads)
        return len(numbers)

    def _make_files(self) -> None:
        try:
            for directory in (self._directory, self._uploads):
                directory.mkdir(PRIVATE_DIRECTORY, parents=True, exist_ok=True)
            if self._lock:
                self._lock.acquire()
            os.close(os.open(self._file, os.O_RDWR | os.O_CREAT, PRIVATE_FILE))  # SQLite would let others read it
        except filelock.Timeout:
            raise BatchStoreError(
                f"another server keeps its batches in {self._directory}: set WHISPER_BATCHES to another directory"
            ) from None
        except OSError as error:
            raise self._failure(error) from error

    def _make_tables(self) -> None:
        with self._failing_clearly():
            self._connection().execute("PRAGMA journal_mode = WAL")  # readers wait for no writer
        with self._transaction() as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            empty = not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if version > VERSION or (version == 0 and not empty):
                raise BatchStoreError(
                    f"{self._file} has tables of version {version}, and this whisperlib reads up to version {VERSION}: "
                    "use the whisperlib that made it, or set WHISPER_BATCHES to another directory"
                )
            for statements in _VERSIONS[version:]:
                for statement in statements.split(";"):
                    db.execute(statement)
            db.execute(f"PRAGMA user_version = {VERSION}")

    def _take_over(self) -> None:
        """Queue what a process had begun that is no more, and delete the files that no item needs."""
        with self._transaction() as db:
            db.execute(f"UPDATE items SET state = 'queued', {_NO_LEASE} WHERE {_OPEN} AND state = 'running'")
            needed = {row[0] for row in db.execute(f"SELECT upload FROM items WHERE {_OPEN}").fetchall()}
        self._remove([path.name for path in self._uploads.iterdir() if path.name not in needed])

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            self._unlink(name, _size_of(self._uploads / name))

    def _unlink(self, name: str, size_bytes: int) -> None:
        with contextlib.suppress(OSError):  # what stays is deleted when the queue is opened again
            (self._uploads / name).unlink()
        with self._counting:
            self._upload_bytes -= size_bytes

    def _database_bytes(self) -> int:
        """Return what the database takes; what was deleted of it is used again."""
        with self._failing_clearly():
            db = self._connection()
            pages, free, page_bytes = (
                int(db.execute(f"PRAGMA {what}").fetchone()[0])
                for what in ("page_count", "freelist_count", "page_size")
            )
        return (pages - free) * page_bytes

    def _check_queued(self, db: sqlite3.Connection, n_items: int) -> None:
        """Raise OverloadedError where so many more are too many."""
        if self._max_queued is not None and (queued := _count_queued(db)) + n_items > self._max_queued:
            raise OverloadedError(
                f"{queued} items of batches wait, and {n_items} more would be above WHISPER_BATCH_MAX_QUEUED, "
                f"{self._max_queued}: try again later, or send fewer",
                FULL_SECONDS,
            )

    def _connection(self) -> sqlite3.Connection:
        """Return this thread's connection."""
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        if db is None:
            with self._opening:
                if self._closed:
                    raise BatchStoreError("the batches were closed: the server is stopping")
                # Another thread closes it.
                db = sqlite3.connect(self._file, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
                self._connections.append(db)
            db.row_factory = sqlite3.Row
            db.execute("PRAGMA foreign_keys = ON")
            self._local.db = db
        return db

    @contextlib.contextmanager
    def _transaction(self, begin: str = "BEGIN IMMEDIATE") -> Iterator[sqlite3.Connection]:
        with self._failing_clearly():
            db = self._connection()
            db.execute(begin)
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _failing_clearly(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> BatchStoreError:
        reason = getattr(error, "strerror", None) or str(error)
        place = self._file if isinstance(error, sqlite3.Error) else self._directory
        return BatchStoreError(
            f"batches cannot be kept in {place}: {reason}: let this user write there, or set WHISPER_BATCHES"
        )


def _digest(batch: NewBatch) -> str:
    """Return a SHA-256 of what is asked; uploaded audio counts by its bytes, not by its name here."""
    digest = hashlib.sha256(batch.settings.encode())
    for item in batch.items:
        upload = item.upload and item.upload.sha256
        more = [item.enhance] if item.enhance else []  # what says nothing of it counts as it did in version 1
        digest.update(repr((item.name, item.url, upload, item.options, *more)).encode())
    return digest.hexdigest()


def _lease(item: Item) -> tuple[Any, ...]:
    """Return what `_LEASED` asks for."""
    return item.batch_id, item.index, item.token


def _size_of(path: Path) -> int:
    """Return a file's bytes; none where it is gone."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _count_queued(db: sqlite3.Connection) -> int:
    row = db.execute(f"SELECT count(*) FROM items WHERE {_OPEN} AND state = 'queued'").fetchone()
    return int(row[0])


def _marks(values: Collection[object]) -> str:
    """Return a parameter's mark for each value."""
    return ", ".join("?" * len(values))


def _uploads_of(db: sqlite3.Connection, number: int) -> list[str]:
    rows = db.execute("SELECT upload FROM items WHERE batch = ? AND upload IS NOT NULL", (number,))
    return [row[0] for row in rows.fetchall()]


def _status(db: sqlite3.Connection, batch: sqlite3.Row) -> BatchStatus:
    counts: dict[ItemState, int] = dict.fromkeys(ITEM_STATES, 0)
    audio_seconds = 0.0
    rows = db.execute(
        "SELECT state, count(*), total(audio_seconds) FROM items WHERE batch = ? GROUP BY state", (batch["number"],)
    )
    for state, count, seconds in rows.fetchall():
        counts[state] = count
        audio_seconds += seconds
    return BatchStatus(
        id=batch["id"],
        sender=batch["sender"],
        settings=batch["settings"],
        created=batch["created"],
        started=batch["started"],
        finished=batch["finished"],
        cancelled=bool(batch["cancelled"]),
        audio_seconds=audio_seconds,
        counts=counts,
    )
