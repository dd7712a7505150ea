"""The image, built once, and containers of it. Everything here is removed at the end, but for the image."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conftest import ROOT

IMAGE = "whisperlib-test"
READY_SECONDS = 180
BUILD_SECONDS = 3600
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")

_numbers = itertools.count()


def docker(*arguments: str, check: bool = True, timeout: float = 120) -> str:
    """Run docker; return what it printed."""
    command = ["docker", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return (done.stdout + done.stderr).strip()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip all of it where no engine runs."""
    reason = None
    if not shutil.which("docker"):
        reason = "docker is not installed"
    elif subprocess.run(["docker", "info"], capture_output=True, check=False).returncode != 0:
        reason = "no Docker Engine answers"
    for item in items:
        if reason and "tests/docker" in str(item.path):
            item.add_marker(pytest.mark.skip(reason=reason))


@dataclass
class Container:
    """A running container of the image."""

    name: str
    url: str

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            assert self.inspect("{{.State.Running}}") == "true", self.log
            try:
                if requests.get(f"{self.url}/ready", timeout=5).ok:
                    return
            except requests.RequestException:
                pass  # it does not listen yet
            time.sleep(0.2)
        raise AssertionError(f"not ready within {READY_SECONDS} s:\n{self.log}")

    def health(self) -> dict[str, Any]:
        answer: dict[str, Any] = requests.get(f"{self.url}/health", timeout=30).json()
        return answer

    def transcribe(self, file: Path, **fields: str) -> requests.Response:
        with file.open("rb") as audio:
            return requests.post(f"{self.url}/transcribe", files={"file": audio}, data=fields, timeout=600)

    def inspect(self, template: str) -> str:
        return docker("inspect", "--format", template, self.name)

    @property
    def log(self) -> str:
        return docker("logs", self.name, check=False)

    def stop(self) -> int:
        """Have it stop as `docker stop` does; return its exit status."""
        docker("stop", self.name)
        return int(self.inspect("{{.State.ExitCode}}"))


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Build the image from what git would take, as `docker build -f docker/Dockerfile .` does."""
    context = tmp_path_factory.mktemp("context")
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in files:
        if (ROOT / name).is_file():
            (context / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, context / name)
    if CERTIFICATES.exists():  # this machine's network may need more than Debian's own
        shutil.copy2(CERTIFICATES, context / "docker/certs/host.crt")
    command = ["docker", "build", "-f", "docker/Dockerfile", "-t", IMAGE, "."]
    for buildkit in ("1", "0"):  # a client without buildx has the old builder only
        with (context / f"build-{buildkit}.log").open("w") as log:
            done = subprocess.run(
                command,
                cwd=context,
                env={**os.environ, "DOCKER_BUILDKIT": buildkit},
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=BUILD_SECONDS,
                check=False,
            )
        said = Path(log.name).read_text(encoding="utf-8", errors="replace")
        if done.returncode == 0 or "buildx" not in said:
            break
    assert done.returncode == 0, said[-5000:]
    return IMAGE


Run = Callable[..., Container]


@pytest.fixture
def run(image: str) -> Iterator[Run]:
    """Start a container with options of `docker run` and WHISPER_ settings; wait until it is ready."""
    with ExitStack() as started:

        def start(*options: str, wait: bool = True, **settings: str) -> Container:
            container = started.enter_context(running(image, *options, **settings))
            if wait:
                container.wait_until_ready()
            return container

        yield start


@contextmanager
def running(image: str, *options: str, **settings: str) -> Iterator[Container]:
    name = f"whisperlib-test-{os.getpid()}-{next(_numbers)}"
    variables = [f"--env=WHISPER_{key.upper()}={value}" for key, value in settings.items()]
    docker("run", "--detach", "--name", name, "--publish", "127.0.0.1::8000", *variables, *options, image)
    try:
        ports = docker("port", name, "8000", check=False).splitlines()  # none without a network
        yield Container(name, f"http://{ports[0]}" if ports else "")
    finally:
        docker("rm", "--force", "--volumes", name, check=False)


@pytest.fixture(scope="session")
def models(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Name of a volume with small and medium: random weights at the real dimensions, in q5_1."""
    root = tmp_path_factory.mktemp("models")
    for size in ("small", "medium"):
        directory = root / f"whisper_{size}_xeon"
        directory.mkdir()
        target = str(directory / f"ggml-{size}-q5_1.bin")
        command = [sys.executable, "-m", "tools.random_weights", size, target, "--type", "q5_1"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    volume = f"whisperlib-test-{os.getpid()}_models"
    docker("volume", "create", volume)
    try:
        copy = ["--user=0", "--entrypoint", "sh", image, "-c", "cp -r /from/. /models/"]
        docker("run", "--rm", "--volume", f"{root}:/from:ro", "--volume", f"{volume}:/models", *copy)
        yield volume
    finally:
        docker("volume", "rm", "--force", volume, check=False)


def layers(image: str) -> list[int]:
    """Sizes of the layers of an image in bytes, from the base up."""
    history = docker("history", "--no-trunc", "--human=false", "--format", "{{json .}}", image)
    return [int(json.loads(line)["Size"]) for line in reversed(history.splitlines())]
