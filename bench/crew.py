"""The parent's side of the workers: start them, ask them, end them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, TextIO, cast

from bench.engines.base import Request, Setup
from tools.ggml_file import REPOSITORY

_OTHERS_CHOICES = ("OMP_", "GOMP_", "KMP_", "WHISPER_")  # each engine is to run as it comes
REPLY_SECONDS = 900.0
SETTLE_SECONDS = 0.3  # some OpenMP runtimes spin for 0.2 s after their last work, which the next engine would feel


class EngineError(Exception):
    """A worker could not load its engine, or died; the message says what it wrote last."""


@dataclass(frozen=True)
class Answer:
    """What one message to a worker came to: seconds of each client, and what the processes used meanwhile.

    `total_cpu_seconds` counts from the start of the worker.
    """

    seconds: list[float]
    wall_seconds: float
    text: str
    cpu_seconds: float
    total_cpu_seconds: float
    resident_bytes: int
    peak_bytes: int
    stages: dict[str, float] = field(default_factory=dict)


class Worker:
    """One engine in a process of its own. Raises EngineError where it does not load."""

    def __init__(self, name: str, setup: Setup, options: Sequence[str] = ()) -> None:
        self.name = name
        started = time.perf_counter()
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed with the worker
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker", name, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=REPOSITORY,
            env={name: value for name, value in os.environ.items() if not name.startswith(_OTHERS_CHOICES)},
        )
        self._requests, self._replies = cast(TextIO, self._process.stdin), cast(TextIO, self._process.stdout)
        try:
            told = self._exchange(asdict(setup))
        except EngineError:
            self.close()
            raise
        if "missing" in told:
            self.close()
            raise EngineError(told["missing"])
        self.version = str(told["version"])
        self.load_seconds = float(told["load_seconds"])
        self.ready_seconds = time.perf_counter() - started  # with the start of Python and the imports
        self.outside = bool(told["outside"])  # the model is not in the worker itself

    def ask(self, request: Request, clients: int = 1) -> Answer:
        """Have `clients` at once ask for the same. Raises EngineError where the worker dies."""
        answer = Answer(**self._exchange({**asdict(request), "clients": clients}))
        time.sleep(SETTLE_SECONDS)
        return answer

    def close(self) -> None:
        """Let the worker end, and end it where it does not."""
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._replies.close()
        self._log.close()

    def _exchange(self, message: dict[str, Any]) -> dict[str, Any]:
        watchdog = threading.Timer(REPLY_SECONDS, self._process.kill)
        watchdog.start()
        try:
            self._requests.write(json.dumps(message) + "\n")
            self._requests.flush()
            line = self._replies.readline()
        except BrokenPipeError:
            line = ""
        finally:
            watchdog.cancel()
        if not line:
            raise EngineError(self._last_words())
        told: dict[str, Any] = json.loads(line)
        return told

    def _last_words(self) -> str:
        status = self._process.wait()
        self._log.seek(0)
        lines = [line for line in self._log.read().splitlines() if line.strip()]
        return f"exit status {status}: {lines[-1].strip()[:300] if lines else 'it wrote nothing'}"


def prepare(name: str, setup: Setup) -> None:
    """Have the files of an engine made where they are missing. Raises EngineError."""
    command = [sys.executable, "-m", "bench.worker", name, "--prepare"]
    done = subprocess.run(
        command, input=json.dumps(asdict(setup)), stderr=subprocess.PIPE, text=True, check=False, cwd=REPOSITORY
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise EngineError(lines[-1][:300] if lines else f"exit status {done.returncode}")


@dataclass
class Crew:
    """The workers that run, and why others do not."""

    workers: list[Worker]
    left_out: dict[str, str]

    def hire(self, name: str, setup: Setup, options: Sequence[str] = ()) -> None:
        """Make the files of an engine and start it, or note why that failed."""
        try:
            prepare(name, setup)
            self.workers.append(Worker(name, setup, options))
        except EngineError as error:
            self.left_out[name] = str(error)

    def dismiss(self, worker: Worker, reason: str) -> None:
        """Go on without a worker that failed."""
        self.workers.remove(worker)
        self.left_out[worker.name] = reason
        worker.close()


@contextmanager
def crew(names: Sequence[str], setup_of: dict[str, Setup], options: Sequence[str] = ()) -> Iterator[Crew]:
    """Start the workers one after the other; those that fail are left out by name."""
    running = Crew([], {})
    try:
        for name in names:
            running.hire(name, setup_of[name], options)
        yield running
    finally:
        for worker in running.workers:
            worker.close()
