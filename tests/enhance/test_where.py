"""Where the language model runs, as Ollama says."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from tests.chat_server import Answer, chat_server, stall
from whisperlib.enhance import LanguageModel, where
from whisperlib.settings import Settings


def loaded(name: str, size: Any, size_vram: Any) -> Answer:
    body = json.dumps({"models": [{"name": "other:1b", "size": 1, "size_vram": 0}, {"name": name, "model": name,
                       "size": size, "size_vram": size_vram}]}).encode()  # fmt: skip
    return lambda call: call.send(body)


@pytest.mark.parametrize(
    ("answer", "placement"),
    [
        (loaded("gemma3:4b", 8, 8), "GPU"),
        (loaded("gemma3:4b", 8, 5), "GPU in part"),
        (loaded("gemma3:4b", 8, 0), "CPU"),
        (loaded("gemma3:4b", None, 0), "unknown"),
        (loaded("gemma3:12b", 8, 8), "not loaded"),
        (lambda call: call.send(b'{"models": []}'), "not loaded"),
        (lambda call: call.send(b'{"models": [1]}'), "unknown"),
        (lambda call: call.send(b"{}"), "unknown"),
        (lambda call: call.send(b"not found", 404), "unknown"),
        (lambda call: call.hang_up(), "unknown"),
    ],
)
def test_the_placement_is_told(answer: Answer, placement: str) -> None:
    with chat_server(answer) as server:
        assert where.ask_placement(LanguageModel(server.base_url, "gemma3:4b")) == placement
    assert [call.path for call in server.calls] == ["/api/ps"]


def test_a_model_without_a_tag_is_the_latest() -> None:
    with chat_server(loaded("gemma3:latest", 8, 8)) as server:
        assert where.ask_placement(LanguageModel(f"{server.base_url}/", "gemma3")) == "GPU"


def test_a_server_that_does_not_answer_is_not_waited_for() -> None:
    with chat_server(stall) as server:
        assert where.ask_placement(LanguageModel(server.base_url, "gemma3"), seconds=0.2) == "unknown"


def test_without_a_language_model_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "whisperlib")
    where.log_where(Settings())
    assert not caplog.records
    assert set(where.describe(Settings()).values()) == {None}
