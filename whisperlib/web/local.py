"""A server in a process of its own on a free port of the loopback, for as long as somebody needs one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from types import TracebackType
from typing import Any

import requests

from whisperlib.errors import UnavailableError
from whisperlib.settings import PREFIX

START_SECONDS = 120.0
STOP_SECONDS = 60.0


class LocalServer:
    """`whisperlib serve` with the given settings, by name; waits until it is ready, and stops it at the end.

    Unless they say so it keeps nothing: each request is work. Raises UnavailableError, with what the server logged
    last, where it does not become ready.

        with LocalServer(model_size="micro") as server:
            requests.post(f"{server.url}/transcribe", files={"file": open("talk.mp3", "rb")})
    """

    def __init__(self, **settings: Any) -> None:
        own = {"host": "127.0.0.1", "port": free_port(), "api_keys": "", "batches": "off", "cache": "off"}
        self._settings = {**own, **settings}
        self.url = f"http://{self._settings['host']}:{self._settings['port']}"

    def __enter__(self) -> LocalServer:
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        variables = {f"{PREFIX}{name.upper()}": str(value) for name, value in self._settings.items()}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "whisperlib", "serve"],
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        try:
            self._wait_until_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    @property
    def log(self) -> str:
        """What the server has logged so far."""
        self._log.flush()
        self._log.seek(0)
        return self._log.read()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        with requests.Session() as session:
            session.trust_env = False  # a proxy of the environment cannot reach our loopback
            while self.process.poll() is None and time.monotonic() < deadline:
                try:
                    if session.get(f"{self.url}/ready", timeout=5).ok:
                        return
                except requests.RequestException:
                    pass  # it does not listen yet
                time.sleep(0.05)
        raise UnavailableError(f"the server did not become ready:\n{self.log[-2000:]}")

    def _stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        finally:
            self._log.close()


def free_port() -> int:
    """Return a port of the loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
