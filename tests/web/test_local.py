"""A server of one's own for a while: it starts with the settings given, and nothing of it is left."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import requests

from tests.web.test_running import AUDIO, TEXT
from whisperlib.errors import UnavailableError
from whisperlib.web import local
from whisperlib.web.local import LocalServer, free_port


def refuses(url: str) -> bool:
    """Whether nobody listens there."""
    try:
        requests.get(f"{url}/health", timeout=60)
    except requests.ConnectionError:
        return True
    return False


def test_it_is_ready_within_the_block_and_gone_after_it() -> None:
    with LocalServer(model_size="micro", threads=1) as server:
        assert server.url.startswith("http://127.0.0.1:")
        answer = requests.post(f"{server.url}/transcribe", data=AUDIO, timeout=60)
        assert answer.json()["text"] == TEXT
        assert "/transcribe" in server.log
    assert server.process.returncode == 0
    assert refuses(server.url)


def test_settings_go_to_the_server_before_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHISPER_MODEL_SIZE", "micro")
    monkeypatch.setenv("WHISPER_API_KEYS", "sesame")
    monkeypatch.setenv("WHISPER_CORS_ORIGINS", "https://environment.example")
    with LocalServer(threads=1, cors_origins="https://given.example") as server:
        answer = requests.get(f"{server.url}/v1/models", headers={"Origin": "https://given.example"}, timeout=60)
    assert answer.status_code == 200  # without a key: it listens on the loopback alone
    assert answer.headers["Access-Control-Allow-Origin"] == "https://given.example"


def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "START_SECONDS", 60.0)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with LocalServer(model_size="micro", threads=1) as server:
        assert server.process.poll() is None


def test_it_is_stopped_where_the_block_fails() -> None:
    server = LocalServer(model_size="micro", threads=1)
    with pytest.raises(ZeroDivisionError), server:
        raise ZeroDivisionError
    assert server.process.returncode == 0
    assert refuses(server.url)


def test_it_can_be_left_though_the_server_died() -> None:
    with LocalServer(model_size="micro", threads=1) as server:
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait(60)
    assert server.process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"model_size": "micro", "threads": "many"}, "WHISPER_THREADS"),
        ({"model_size": "tiny", "failure_delay_seconds": 0}, "could not be loaded"),
    ],
)
def test_a_server_that_does_not_become_ready_says_why(tmp_path: Path, settings: dict[str, object], reason: str) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    server = LocalServer(model_root=tmp_path, artifact_url=nowhere, download_retries=0, **settings)
    with pytest.raises(UnavailableError, match=reason), server:
        pytest.fail("it was ready")
    assert server.process.returncode is not None


def test_a_port_may_be_chosen() -> None:
    port = free_port()
    assert LocalServer(port=port).url == f"http://127.0.0.1:{port}"
