"""Results in the file system: a private file for each, which appears whole.

A file's modification time is when it was made, its access time when it was last used.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from whisperlib.cache.store import Stats, Trouble

PRIVATE = 0o700
LEFT_OVER_SECONDS = 3600.0  # a file that was begun so long ago, and is not whole, is nobody's
RECOUNT_SECONDS = 86_400.0  # so that what is too old is deleted, however little comes
RECOUNT_SHARE = 8  # others write too: count anew when a process has written this part of what may be there


class FileStore:
    """A store in `directory`, of at most `max_bytes`, for `max_age_seconds`.

    Several processes that write at once may be over the limit by an eighth each, until one counts again.
    """

    def __init__(self, directory: Path, *, max_bytes: int, max_age_seconds: float) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._max_age_seconds = max_age_seconds
        self._trouble = Trouble(str(directory))
        self._lock = threading.Lock()
        self._trimming = threading.Lock()
        self._size_bytes: int | None = None  # not counted yet
        self._uncounted_bytes = 0
        self._trimmed_at = 0.0
        self._evictions = 0

    def get(self, key: str) -> bytes | None:
        """Return what is kept."""
        path = self._path(key)
        try:
            with path.open("rb") as file:
                fresh = time.time() - os.fstat(file.fileno()).st_mtime <= self._max_age_seconds
                value = file.read() if fresh else None
        except FileNotFoundError:
            return None
        except OSError as error:
            self._trouble.failed(error)
            return None
        if value is None:
            self.delete(key)
        return value

    def put(self, key: str, value: bytes) -> None:
        """Keep a value; one that is larger than the limit is not kept."""
        if len(value) > self._max_bytes:
            return
        try:
            self._write(self._path(key), value)
        except OSError as error:
            self._trouble.failed(error)
            return
        self._trouble.worked()
        with self._lock:
            self._uncounted_bytes += len(value)
            counted = self._size_bytes is not None and self._uncounted_bytes <= self._max_bytes // RECOUNT_SHARE
            within = (self._size_bytes or 0) + self._uncounted_bytes <= self._max_bytes
            recently = time.monotonic() - self._trimmed_at < RECOUNT_SECONDS
        if not (counted and within and recently):
            self._trim()

    def touch(self, key: str) -> None:
        """Set the time of the last use."""
        path = self._path(key)
        with suppress(OSError):
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))

    def delete(self, key: str) -> None:
        """Forget a value."""
        with suppress(OSError):
            self._path(key).unlink()

    def stats(self) -> Stats:
        """Tell what was counted last, and written here since."""
        with self._lock:
            size = None if self._size_bytes is None else self._size_bytes + self._uncounted_bytes
            return Stats(size, self._evictions)

    def count(self) -> Stats:
        """Count what is there, and delete nothing."""
        try:
            size_bytes = sum(status.st_size for _, status in self._entries())
        except FileNotFoundError:  # nothing was ever kept
            size_bytes = 0
        except OSError as error:
            self._trouble.failed(error)
            return self.stats()
        with self._lock:
            self._size_bytes, self._uncounted_bytes = size_bytes, 0
        return self.stats()

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def _path(self, key: str) -> Path:
        return self._directory / key[:2] / key

    def _write(self, path: Path, value: bytes) -> None:
        for directory in (self._directory, path.parent):
            directory.mkdir(PRIVATE, parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(".part", ".", path.parent)  # for this user only
        scratch = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(value)
            now = time.time_ns()  # finer than the kernel's own stamps: the order of uses shall not depend on their tick
            os.utime(scratch, ns=(now, now))
            scratch.replace(path)
        except BaseException:
            with suppress(OSError):
                scratch.unlink()
            raise

    def _trim(self) -> None:
        """Count what is there, and delete what is too old, then what was not used for longest."""
        if not self._trimming.acquire(blocking=False):
            return
        try:
            with self._lock:
                self._uncounted_bytes, self._trimmed_at = 0, time.monotonic()
            now = time.time()
            kept: list[tuple[float, int, Path]] = []
            for path, status in self._entries():
                age_seconds = now - status.st_mtime
                if age_seconds > (LEFT_OVER_SECONDS if path.suffix == ".part" else self._max_age_seconds):
                    self._evict(path)
                else:
                    kept.append((status.st_atime, status.st_size, path))
            size_bytes = sum(size for _, size, _ in kept)
            if size_bytes > self._max_bytes:
                goal = self._max_bytes - self._max_bytes // RECOUNT_SHARE  # so that not every result has it count
                for _, size, path in sorted(kept)[:-1]:  # the newest fits, whatever its size
                    if size_bytes <= goal:
                        break
                    self._evict(path)
                    size_bytes -= size
            with self._lock:
                self._size_bytes = size_bytes
        except OSError as error:
            self._trouble.failed(error)
        finally:
            self._trimming.release()

    def _evict(self, path: Path) -> None:
        with suppress(FileNotFoundError):  # another process was first
            path.unlink()
            with self._lock:
                self._evictions += 1

    def _entries(self) -> Iterator[tuple[Path, os.stat_result]]:
        for shard in self._directory.iterdir():
            if len(shard.name) == 2 and shard.is_dir():
                for path in shard.iterdir():
                    with suppress(FileNotFoundError):
                        yield path, path.stat()
