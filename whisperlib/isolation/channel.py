"""The way between the two processes: messages through a socket, samples through shared memory."""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from whisperlib.errors import EngineError
from whisperlib.pcm import Samples


class Channel:
    """One end. Any thread may send, one receives."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        _open_here.add(connection)

    def send(self, message: object, file: int | None = None) -> None:
        """Send a message, and an open file behind it. Raises OSError where the other end is closed."""
        with self._sending:
            self._connection.send(message)
            if file is not None:
                reduction.send_handle(self._connection, file, 0)  # the process id is for Windows

    def receive(self) -> Any:
        """Wait for a message. Raises EOFError or OSError where the other end is closed, or its process has ended."""
        return self._connection.recv()

    def receive_file(self) -> int:
        """Take the open file that comes behind a message; it is the caller's."""
        return reduction.recv_handle(self._connection)

    def close(self) -> None:
        """Close this end; what is being sent is sent first. Again: nothing happens."""
        with self._sending:
            self._connection.close()


_open_here: weakref.WeakSet[Connection] = weakref.WeakSet()


def _close_in_fork() -> None:
    for connection in list(_open_here):
        connection.close()


# A fork's copy would keep the other process from seeing that this one has ended.
os.register_at_fork(after_in_child=_close_in_fork)


@contextmanager
def shared(samples: Samples) -> Iterator[int]:
    """Lend a file in memory that holds `samples`, float32 of shape (n,). Raises EngineError where there is no room.

    It has no name: nothing is left of it when the last process that has it ends, and the size of `/dev/shm`, which is
    64 MB in a container, is no limit.
    """
    with ExitStack() as stack:
        try:
            file = os.memfd_create("whisperlib-audio")
            stack.callback(os.close, file)
            with open(file, "wb", closefd=False) as writer:
                writer.write(samples.data)
        except OSError as error:
            raise EngineError(f"the audio cannot be handed to the engine's process: {error.strerror}") from error
        yield file


def mapped(file: int) -> Samples:
    """Return the samples in a file that `shared` lent, read only and without a copy; the file is closed."""
    try:
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE  # its pages are there: one call, and no fault for each
        return np.frombuffer(mmap.mmap(file, 0, flags=flags, prot=mmap.PROT_READ), np.float32)
    finally:
        os.close(file)
