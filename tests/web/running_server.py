"""A real server process on a free port of the loopback.

with running_server(shutdown_seconds=5) as server:
    server.get("/ready").json()
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from tests.conftest import ROOT

SERVE = (sys.executable, "-m", "whisperlib", "serve")
START_SECONDS = 120.0  # on a busy machine
STOP_SECONDS = 60.0
NO_MODELS = "/nowhere/models"  # else the user's own could be asked for


@dataclass
class RunningServer:
    """What a test holds of it. `url` is without a slash at its end, `pid` the master's."""

    process: subprocess.Popen[bytes]
    host: str
    port: int
    log_file: Path

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        """What it has written to stdout and stderr so far."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    @property
    def worker_pids(self) -> list[int]:
        """The master's children."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [int(pid) for pid in children.read_text(encoding="ascii").split()]

    def get(self, path: str, **keywords: Any) -> requests.Response:
        """GET on a connection of its own."""
        return requests.get(f"{self.url}{path}", timeout=STOP_SECONDS, **keywords)

    def post(self, path: str, **keywords: Any) -> requests.Response:
        """POST on a connection of its own."""
        return requests.post(f"{self.url}{path}", timeout=STOP_SECONDS, **keywords)

    def connect(self) -> socket.socket:
        """Return a socket for a test that says itself what is sent."""
        return socket.create_connection((self.host, self.port), timeout=STOP_SECONDS)

    def is_ready(self) -> bool:
        """Whether /ready says so; fails where the process has ended."""
        if self.process.poll() is not None:
            raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.log}")
        try:
            return self.get("/ready").ok
        except requests.ConnectionError:
            return False

    def wait_until_ready(self) -> None:
        wait_until(self.is_ready, "the server is ready", START_SECONDS)

    def send(self, number: signal.Signals) -> None:
        """Send the master a signal."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for its end; return its exit status."""
        return self.process.wait(STOP_SECONDS)

    def stop(self) -> int:
        """Have it stop by SIGTERM; return its exit status."""
        self.send(signal.SIGTERM)
        return self.wait()


@contextmanager
def running_server(
    *, command: tuple[str, ...] = SERVE, wait: bool = True, environment: dict[str, str] | None = None, **settings: Any
) -> Iterator[RunningServer]:
    """Start `command`, a server, with WHISPER_ variables of `settings`; the model is micro, with one thread.

    `wait` waits until it is ready. At the end, a server that still runs is stopped by SIGTERM, and must exit with 0.
    """
    own = {"model_size": "micro", "model_root": NO_MODELS, "threads": 1, "host": "127.0.0.1", "port": free_port()}
    settings = {**own, "batches": "off", "cache": "off", **settings}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WHISPER_")}
    variables = {f"WHISPER_{name.upper()}": str(value) for name, value in settings.items()}
    with tempfile.TemporaryDirectory() as directory:
        log_file = Path(directory, "log")
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**inherited, **variables, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        server = RunningServer(process, settings["host"], settings["port"], log_file)
        try:
            if wait:
                server.wait_until_ready()
            yield server
            if process.poll() is None:
                assert server.stop() == 0, server.log
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def wait_until(condition: Callable[[], object], what: str, seconds: float = STOP_SECONDS) -> None:
    """Poll until `condition` is true; fail when it is not in `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)
