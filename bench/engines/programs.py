"""whisper.cpp's own programs, of our build: `whisper-cli` spawned for every request, and `whisper-server`."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
from pathlib import Path

import requests

from bench import models
from bench.engines.base import Base, Reply, Request, Setup
from tools.ggml_file import REPOSITORY

LIBRARIES = REPOSITORY / "native/lib/cpu"
VAD_MODEL = REPOSITORY / "whisperlib/assets/vad/ggml-silero-v6.2.0.bin"
START_SECONDS = 120.0
_NO_PROXY = {"http": ""}  # a proxy of the environment cannot reach our loopback


class WhisperCli(Base):
    """A process for each request: how it is done without a library."""

    spawns = True

    def __init__(self, setup: Setup) -> None:
        self._command = [
            str(_program("whisper-cli")),
            "-m",
            str(models.ggml(setup.size, setup.kind)),
            "-l",
            "en",
            "-np",
        ]
        self._command += ["-t", str(setup.threads)] if setup.threads else []
        self.version = _version()

    def transcribe(self, request: Request) -> Reply:
        """Spawn, wait, and take the text from what it prints."""
        command = [*self._command, "-f", request.audio, "-bs", str(request.beam_size)]
        if request.skip_pauses:
            command += ["-mc", "0", "--vad", "-vm", str(VAD_MODEL)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        lines = done.stdout.decode(errors="replace").splitlines()
        return Reply(" ".join(re.sub(r"^\[[^]]*\]", "", line).strip() for line in lines).strip())


class WhisperServer(Base):
    """One server, asked over HTTP on the loopback."""

    def __init__(self, setup: Setup) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        command = [str(_program("whisper-server")), "-m", str(models.ggml(setup.size, setup.kind)), "-l", "en"]
        command += ["--host", "127.0.0.1", "--port", str(port), "-vm", str(VAD_MODEL)]
        command += ["-t", str(setup.threads)] if setup.threads else []
        self._url = f"http://127.0.0.1:{port}"
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.process_ids = (self._process.pid,)
        self.version = _version()
        try:
            self._wait_until_ready()
        except BaseException:
            self.close()
            raise

    def transcribe(self, request: Request) -> Reply:
        """Upload the file."""
        fields = {"beam_size": str(request.beam_size), "best_of": "5", "response_format": "json"}
        if request.skip_pauses:
            fields |= {"vad": "true", "max_context": "0"}
        with Path(request.audio).open("rb") as file:
            answer = requests.post(
                f"{self._url}/inference", data=fields, files={"file": file}, proxies=_NO_PROXY, timeout=600
            )
        answer.raise_for_status()
        return Reply(" ".join(answer.json()["text"].split()))

    def close(self) -> None:
        """End the server."""
        self._process.terminate()
        self._process.wait(30)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if requests.get(f"{self._url}/health", proxies=_NO_PROXY, timeout=5).ok:
                    return
            except requests.RequestException:
                pass  # it does not listen yet
            time.sleep(0.02)
        raise OSError(f"whisper-server was not ready within {START_SECONDS:g} s")


def _program(name: str) -> Path:
    path = LIBRARIES / name
    if not path.exists():
        raise ImportError(f"{name} is not built: make native{' NATIVE_ARGS=--server' if 'server' in name else ''}")
    return path


def _version() -> str:
    return str(json.loads((LIBRARIES / "build-info.json").read_text())["whisper_version"])
