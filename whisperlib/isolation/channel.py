"""The way between the two processes: messages through a socket, samples through shared memory."""

from __future__ import annotations

import copyreg
import io
import mmap
import os
import pickle
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from multiprocessing import reduction
from multiprocessing.connection import Connection
from operator import attrgetter
from typing import Any

import numpy as np

from whisperlib import audio
from whisperlib.audio import Source
from whisperlib.errors import AudioError, EngineError
from whisperlib.pcm import SAMPLE_BYTES, Samples
from whisperlib.results import Segment, Timings, TokenLogprob, Transcription, Word


class Channel:
    """One end. Any thread may send, one receives."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        _open_here.add(connection)

    def send(self, message: object, file: int | None = None) -> None:
        """Send a message, and an open file behind it. Raises OSError where the other end is closed."""
        data = _pickled(message)
        with self._sending:
            self._connection.send_bytes(data)
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


def _as_call(kind: type[Any]) -> Callable[[Any], tuple[Callable[..., Any], tuple[Any, ...]]]:
    values = attrgetter(*(field.name for field in fields(kind)))
    return lambda value: (kind, values(value))


# Written as the call that makes it: what a dataclass with slots does to be pickled takes several times as long.
_DISPATCH_TABLE = copyreg.dispatch_table | {
    kind: _as_call(kind) for kind in (Transcription, Timings, Segment, Word, TokenLogprob)
}


def _pickled(message: object) -> memoryview:
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, pickle.HIGHEST_PROTOCOL)
    pickler.dispatch_table = _DISPATCH_TABLE
    pickler.dump(message)
    return buffer.getbuffer()


@dataclass(frozen=True)
class SharedAudio:
    """Samples, as many as `n_samples`, in an open file; times as those of `audio.Decoded`."""

    file: int
    n_samples: int
    started: float
    seconds: float


@contextmanager
def shared(source: Source, max_seconds: float | None) -> Iterator[SharedAudio]:
    """Decode audio into a file in memory, and lend that. Raises what `audio.load` raises, EngineError without room.

    The file is the request's own and has no name: nothing of it can get into another request, nothing is left of it
    when the last process that has it ends, and the size of `/dev/shm`, which is 64 MB in a container, is no limit.
    """
    started = time.monotonic()
    with ExitStack() as stack:
        try:
            file = os.memfd_create("whisperlib-audio")
            stack.callback(os.close, file)
            with open(file, "wb", closefd=False) as writer:
                audio.load_into(writer, source, max_seconds=max_seconds)
                n_bytes = writer.tell()
        except AudioError:
            raise  # also where there is no such file, which is an OSError, too
        except OSError as error:
            raise EngineError(f"the audio cannot be handed to the engine's process: {error.strerror}") from error
        yield SharedAudio(file, n_bytes // SAMPLE_BYTES, started, time.monotonic() - started)


def mapped(file: int) -> Samples:
    """Return the samples in a file that `shared` lent, read only and without a copy; the file is closed."""
    try:
        return np.frombuffer(mmap.mmap(file, 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ), np.float32)
    finally:
        os.close(file)
