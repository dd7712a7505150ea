"""Where the language model runs, as Ollama says."""

from __future__ import annotations

import json
import logging
import threading
from typing import Any

import pytest

from tests.chat_server import WAIT_SECONDS, Answer, Call, chat_server, stall
from whisperlib.enhance import Enhancer, LanguageModel, where
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


def test_without_a_language_model_there_is_nothing_to_tell() -> None:
    assert set(where.describe(Settings()).values()) == {None}


@pytest.mark.parametrize("at_first", ["not loaded", "GPU"])
def test_what_is_known_after_the_first_answer_is_logged_if_it_is_new(
    at_first: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "whisperlib")
    placements = iter([loaded("gemma3" if at_first == "GPU" else "another", 8, 8), loaded("gemma3", 8, 8)])

    def answer(call: Call) -> None:
        if call.path == "/api/ps":
            next(placements)(call)
        else:
            call.reply(call.transcript)

    with chat_server(answer) as server:
        enhancer = Enhancer(LanguageModel(server.base_url, "gemma3"))
        logging_ = threading.Thread(target=where.log_where, args=(enhancer,))
        logging_.start()
        assert enhancer.enhance("the train leaves at five").status == "enhanced"
        logging_.join(WAIT_SECONDS)
    first, *later = [record.getMessage() for record in caplog.records]
    assert first == f"transcripts are cleaned up by gemma3 at {server.base_url}, in Ollama on: {at_first}"
    assert later == ([] if at_first == "GPU" else ["transcripts are cleaned up by gemma3, now in Ollama on: GPU"])
