"""One process with a model, from its start to its end."""

from __future__ import annotations

import copy
import itertools
import logging
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from multiprocessing import Pipe

from whisperlib import assets
from whisperlib.errors import WhisperlibError
from whisperlib.isolation.call import Call
from whisperlib.isolation.channel import Channel
from whisperlib.isolation.messages import (
    LOADING,
    Ask,
    Cancel,
    Close,
    Done,
    Failed,
    Load,
    Loaded,
    Logged,
    Order,
    Progressed,
    Query,
    Queued,
    Report,
    Settled,
)

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 10.0  # to end the last step of the model and free it
LAST_LINES = 60  # of what it wrote to stderr: of an abort, the reason and where it was
OUTPUT_SECONDS = 1.0  # for what is left of its output when it has ended


class EngineProcess:
    """Starts the process, which loads the model as `load` says. Raises OSError where it cannot be started.

    `on_loaded` is called when requests are taken. `on_end` is called when it has ended by itself, and returns what its
    requests then raise. Both are called in the thread that listens to the process.
    """

    def __init__(
        self,
        load: Load,
        on_loaded: Callable[[EngineProcess, Loaded], object],
        on_end: Callable[[EngineProcess], WhisperlibError],
    ) -> None:
        self.load_error: BaseException | None = None
        self.last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._on_loaded = on_loaded
        self._on_end = on_end
        self._lock = threading.Lock()
        self._calls: dict[int, Call] = {}
        self._numbers = itertools.count(LOADING + 1)
        self._last_words: WhisperlibError | None = None  # what requests raise, where no more are taken
        self._ended = threading.Event()
        here, there = Pipe()
        with there:
            self._channel = Channel(here)
            self._process = _spawn(there.fileno())
        self._reader = threading.Thread(target=self._read_output, name="engine-output", daemon=True)
        self._reader.start()
        threading.Thread(target=self._listen, name="engine", daemon=True).start()
        self._send(load)

    @property
    def id(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def n_calls(self) -> int:
        """Requests that are in it."""
        return len(self._calls)

    @property
    def how_it_ended(self) -> str:
        """Say how it has ended: "ended by SIGSEGV"."""
        status = self._process.returncode
        if status >= 0:
            return f"ended with status {status}"
        name = signal.Signals(-status).name
        return f"ended by {name}" + (", as the system does where memory runs out" if name == "SIGKILL" else "")

    def ask(self, call: Call, make: Callable[[int], Ask | Query], file: int | None = None) -> int | None:
        """Send what `make` makes for a number, and its samples; return the number, and tell `call` however it ends.

        None where the process has ended and took up nothing of it: `call` is told nothing.
        """
        with self._lock:
            number = next(self._numbers)
            if self._last_words:
                return None
            self._calls[number] = call
            if self._send(make(number), file):
                return number
            del self._calls[number]
            return None

    def cancel(self, number: int) -> None:
        """Stop a request; one that has ended is ignored."""
        if number in self._calls:
            self._send(Cancel(number))

    def close(self, last_words: WhisperlibError) -> None:
        """Have it stop what runs, and end. Requests that come later raise `last_words`."""
        with self._lock:
            self._last_words = last_words
            self._send(Close())

    def wait(self) -> None:
        """Wait until it has ended after `close`; it is killed where it does not."""
        if not self._ended.wait(CLOSE_SECONDS):
            logger.warning("the engine's process %d does not stop: it is killed", self.id)
            self._process.kill()
            self._ended.wait()

    def _send(self, order: Order, file: int | None = None) -> bool:
        """Send; return whether it was still there. The thread that listens finds out, and tells all."""
        try:
            self._channel.send(order, file)
        except OSError:
            return False
        return True

    def _listen(self) -> None:
        try:
            while True:
                self._take(self._channel.receive())
        except (EOFError, OSError):
            pass  # it has ended
        except Exception:
            logger.exception("what the engine's process %d says cannot be understood", self.id)
        self._process.kill()  # it is ending, or cannot be heard any more
        self._process.wait()
        self._reader.join(OUTPUT_SECONDS)
        last_words = self._last_words or self._on_end(self)
        with self._lock:
            self._last_words = last_words
            calls, self._calls = self._calls, {}
        self._channel.close()
        for number, call in calls.items():
            call.take(Failed(number, _own(last_words)))
        self._ended.set()

    def _take(self, report: Report) -> None:
        match report:
            case Loaded():
                self._on_loaded(self, report)
            case Logged():
                _log(report.record, self._calls.get(report.call or LOADING))
            case Failed(call=number, error=error) if number == LOADING:
                self.load_error = error
            case Queued() | Settled() | Progressed():
                self._calls[report.call].take(report)
            case Done() | Failed():
                self._calls.pop(report.call).take(report)

    def _read_output(self) -> None:
        """Keep the last lines that native code writes: what it says before it aborts."""
        assert self._process.stdout  # noqa: S101 (it was asked for)
        with self._process.stdout as output:
            for line in output:
                self.last_lines.append(line.rstrip())
                logger.debug("engine: %s", line.rstrip())


def _spawn(descriptor: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "whisperlib.isolation", str(descriptor)],
        pass_fds=[descriptor],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(assets.PACKAGE.parent), *sys.path])},
        start_new_session=True,  # a terminal's Ctrl-C is for the parent, which lets requests end
    )


def _own(error: WhisperlibError) -> WhisperlibError:
    """Return a copy: each request raises one of its own."""
    return copy.copy(error).with_traceback(None)


def _log(record: logging.LogRecord, call: Call | None) -> None:
    """Log what was logged in the process, with the context variables of who asked."""
    target = logging.getLogger(record.name)
    if target.isEnabledFor(record.levelno):
        if call:
            call.context.run(target.handle, record)
        else:
            target.handle(record)
