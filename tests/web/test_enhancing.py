"""`POST /transcribe` with a clean-up, as a client sees it, and what becomes of it when its client goes."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from flask import Flask, g
from flask.testing import FlaskClient

from tests.chat_server import Call, ChatServer, chat_server, stall
from tests.web.busy_engine import WAIT_SECONDS
from tests.web.conftest import MakeApp
from tests.web.running_server import running_server, wait_until
from tests.web.test_metrics import value
from tests.web.test_running import AUDIO, TEXT
from tests.web.test_transcribe import error_of, events_of, post
from whisperlib import assets
from whisperlib.enhance import Enhancement, Enhancer, why_not
from whisperlib.options import CancelToken
from whisperlib.web import enhancing, openapi, schemas
from whisperlib.web.service import Service

CORRECTED = TEXT.replace("five thirty-six", "5:36")
POEM = "The waves roll in beneath the moon,\nand gulls will sing their salty tune."
SILENCE = assets.SAMPLES / "silence_white5_0001.flac"
ANSWER_FIELDS = ["id", "text", "language", "duration", "segments", "model", "complete", "timings"]


def correct(call: Call) -> None:
    if call.path == "/api/ps":
        call.send(b'{"models": [{"name": "gemma3", "size": 8, "size_vram": 8}]}')
    else:
        call.reply(call.transcript.replace("five thirty-six", "5:36"))


@pytest.fixture
def chat() -> Iterator[ChatServer]:
    with chat_server(correct) as server:
        yield server


@pytest.fixture
def app(make_app: MakeApp, chat: ChatServer) -> Flask:
    return make_app(threads=1, concurrency=1, llm_base_url=chat.base_url, llm_model="gemma3")


@contextmanager
def client_of(make_app: MakeApp, answer: Any, **settings: Any) -> Iterator[tuple[FlaskClient, ChatServer]]:
    with chat_server(answer) as server:
        app = make_app(threads=1, concurrency=1, llm_base_url=server.base_url, llm_model="gemma3", **settings)
        yield app.test_client(), server


def test_the_answer_has_the_text_of_both(client: FlaskClient) -> None:
    answer = post(client).get_json()
    schemas.Answer.model_validate(answer)
    assert list(answer) == [*ANSWER_FIELDS, "enhancement"]
    assert answer["text"] == answer["segments"][0]["text"] == TEXT
    assert answer["enhancement"] == {"status": "enhanced", "text": CORRECTED, "reason": None, "model": "gemma3"}
    timings = answer["timings"]
    assert timings["enhance"] > 0
    assert timings["total"] + 0.001 >= timings["inference"] + timings["enhance"]


@pytest.mark.parametrize("query", [{}, {"enhance": "never"}])
@pytest.mark.parametrize("response_format", ["json", "verbose_json"])
def test_without_a_clean_up_nothing_tells_of_one(
    make_app: MakeApp, query: dict[str, str], response_format: str
) -> None:
    answer = post(make_app().test_client(), **query, response_format=response_format).get_json()
    fields = [*ANSWER_FIELDS, *(["task"] if response_format == "verbose_json" else [])]
    assert list(answer) == fields
    assert list(answer["timings"]) == ["fetch", "decode", "queue", "vad", "inference", "total"]


def test_who_wants_none_gets_none(client: FlaskClient, chat: ChatServer) -> None:
    assert list(post(client, enhance="never").get_json()) == ANSWER_FIELDS
    assert [name for name, _ in events_of(post(client, enhance="never", stream="true"))][-1] == "result"
    assert not chat.calls


@pytest.mark.parametrize("response_format", ["text", "srt", "vtt", "tsv"])
def test_a_text_format_is_the_transcript_and_asks_nobody(
    client: FlaskClient, chat: ChatServer, response_format: str
) -> None:
    response = post(client, response_format=response_format, enhance="always")
    assert response.status_code == 200
    assert TEXT in response.text
    assert not chat.calls


def test_always_without_a_language_model_is_refused(make_app: MakeApp) -> None:
    response = post(make_app().test_client(), enhance="always")
    assert response.status_code == 400
    error = error_of(response)
    assert (error["code"], error["param"]) == ("invalid_option", "enhance")
    assert "WHISPER_LLM_BASE_URL" in error["message"]


def test_auto_without_a_language_model_says_so(make_app: MakeApp) -> None:
    enhancement = post(make_app().test_client(), enhance="auto").get_json()["enhancement"]
    assert (enhancement["status"], enhancement["reason"]) == ("skipped", "this server has no language model")


def ask_openai(client: FlaskClient, **fields: str) -> Any:
    return client.post("/v1/audio/transcriptions", data={"file": (io.BytesIO(AUDIO), "a.flac"), **fields})


@pytest.mark.parametrize("response_format", ["json", "verbose_json"])
def test_openai_s_call_cleans_up_where_it_is_asked_to(
    client: FlaskClient, chat: ChatServer, response_format: str
) -> None:
    plain = ask_openai(client, response_format=response_format).get_json()
    never = ask_openai(client, response_format=response_format, enhance="never").get_json()
    assert "enhancement" not in plain
    assert plain == never
    assert not chat.calls
    for mode in ("auto", "always"):
        answer = ask_openai(client, response_format=response_format, enhance=mode).get_json()
        assert answer.pop("enhancement") == post(client).get_json()["enhancement"]
        assert answer == plain
        assert answer["text"] == TEXT


def test_openai_s_call_keeps_the_transcript_of_a_text_format_and_of_a_failure(make_app: MakeApp) -> None:
    with client_of(make_app, lambda call: call.send(b"no", 500)) as (client, server):
        assert ask_openai(client, response_format="text", enhance="always").text.strip() == TEXT
        assert not server.calls
        told = ask_openai(client, enhance="always").get_json()
    assert (told["text"], told["enhancement"]["status"]) == (TEXT, "failed")


@pytest.mark.parametrize("fields", [{"enhance": "often"}, {"enhance": "auto", "stream": "true"}])
def test_openai_s_call_refuses_what_it_cannot_do(client: FlaskClient, fields: dict[str, str]) -> None:
    response = ask_openai(client, **fields)
    assert (response.status_code, error_of(response)["param"]) == (400, "enhance")


def test_openai_s_call_refuses_always_without_a_language_model(make_app: MakeApp) -> None:
    client = make_app().test_client()
    response = ask_openai(client, enhance="always")
    assert (response.status_code, error_of(response)["param"]) == (400, "enhance")
    assert ask_openai(client, enhance="auto").get_json()["enhancement"]["status"] == "skipped"


def test_another_word_is_refused(client: FlaskClient) -> None:
    assert error_of(post(client, enhance="sometimes"))["param"] == "enhance"


def test_every_way_to_ask_is_heard(client: FlaskClient, chat: ChatServer) -> None:
    asked = {"file": (io.BytesIO(AUDIO), "a.flac"), "enhance": "always"}
    assert client.post("/transcribe", data=asked).get_json()["enhancement"]["status"] == "enhanced"
    assert post(client, enhance="auto").get_json()["enhancement"]["status"] == "enhanced"
    assert len(chat.calls) == 2


def test_silence_is_left_alone(client: FlaskClient, chat: ChatServer) -> None:
    answer = post(client, SILENCE.read_bytes()).get_json()
    assert (answer["text"], answer["enhancement"]["status"]) == ("", "skipped")
    assert not chat.calls


def test_the_larger_models_are_left_alone_by_auto(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    # No larger model is here: the rule is asked with the name of one.
    monkeypatch.setattr(enhancing, "why_not", lambda mode, _: why_not(mode, "medium"))
    skipped = post(client).get_json()["enhancement"]
    assert (skipped["status"], skipped["text"]) == ("skipped", None)
    assert "medium" in skipped["reason"]
    assert events_of(post(client, stream="true"))[-1] == ("enhancement.done", {**skipped, "seconds": 0.0})
    assert post(client, enhance="always").get_json()["enhancement"]["status"] == "enhanced"


def test_a_stream_has_its_own_events_first(client: FlaskClient) -> None:
    plain = events_of(post(client, stream="true", enhance="never"))
    events = events_of(post(client, stream="true"))
    names = [name for name, _ in events]
    at = names.index("result") + 1
    assert names[:at].count("segment") == 1
    assert list(events[at - 1][1]) == list(plain[-1][1]) == ANSWER_FIELDS
    assert names[at:-1] == ["enhancement.delta"] * (len(names) - at - 1)
    assert len(names) - at > 5
    name, done = events[-1]
    assert name == "enhancement.done"
    assert done.pop("seconds") > 0
    assert done == {"status": "enhanced", "text": CORRECTED, "reason": None, "model": "gemma3"}
    assert "".join(data["text"] for name, data in events if name == "enhancement.delta") == CORRECTED


@pytest.mark.parametrize(
    ("answer", "timeout_seconds", "reason"),
    [
        (lambda call: call.send(b"no", 500), WAIT_SECONDS, "answered 500"),
        (lambda call: call.reply(POEM), WAIT_SECONDS, "refused"),
        (stall, 0.5, "not done within"),
    ],
)
def test_a_language_model_that_fails_costs_no_transcript(
    make_app: MakeApp, answer: Any, timeout_seconds: float, reason: str
) -> None:
    with client_of(make_app, answer, llm_timeout=timeout_seconds) as (client, _):
        told = post(client).get_json()
        assert told["text"] == TEXT
        assert (told["enhancement"]["status"], told["enhancement"]["text"]) == ("failed", None)
        assert reason in told["enhancement"]["reason"]
        events = events_of(post(client, stream="true"))
        assert ("result", TEXT) in [(name, data.get("text")) for name, data in events]
        assert events[-1][0] == "enhancement.done"
        assert reason in events[-1][1]["reason"]


def test_the_deadline_of_the_request_counts_for_the_clean_up(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []

    def enhance(_self: Enhancer, _text: str, _language: str, _cancel: CancelToken, seconds: float) -> Enhancement:
        given.append(seconds)
        return Enhancement("failed")

    # What an enhancer does with it is its own tests' concern.
    monkeypatch.setattr(Enhancer, "enhance", enhance)
    with client_of(make_app, correct, request_timeout_seconds=1000, llm_timeout=3600) as (client, _):
        post(client)
        post(client, timeout_seconds="500")
    assert 500 < given[0] < 1000
    assert 0 < given[1] < 500


def test_a_clean_up_holds_no_slot(make_app: MakeApp) -> None:
    release = threading.Event()

    def answer(call: Call) -> None:
        release.wait(WAIT_SECONDS)
        correct(call)

    with client_of(make_app, answer) as (client, server):
        answers: list[Any] = []
        waiting = threading.Thread(target=lambda: answers.append(post(client).get_json()))
        waiting.start()
        assert server.called.wait(WAIT_SECONDS)
        assert post(client.application.test_client(), enhance="never").get_json()["text"] == TEXT
        assert not answers
        release.set()
        waiting.join(WAIT_SECONDS)
    assert answers[0]["enhancement"]["text"] == CORRECTED


@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_clean_up_leases_no_model(make_app: MakeApp, stream: str) -> None:
    leases: list[int] = []

    def answer(call: Call) -> None:
        leases.append(service.pool.status(service.key_of(None)).leases)
        correct(call)

    with client_of(make_app, answer) as (client, _):
        service: Service = client.application.extensions["whisper_service"]
        assert CORRECTED in post(client, stream=stream).text
    assert leases == [0]


def test_a_stream_says_that_it_is_alive_while_the_language_model_thinks(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enhancing, "HEARTBEAT_SECONDS", 0.01)
    release = threading.Event()

    def answer(call: Call) -> None:
        release.wait(WAIT_SECONDS)
        correct(call)

    with client_of(make_app, answer) as (client, _):
        response = client.post("/transcribe", data=AUDIO, query_string={"stream": "true"})
        lines = response.iter_encoded()
        assert b": keep-alive\n\n" in lines  # reads up to the first one
        release.set()
        assert b"enhancement.done" in b"".join(lines)


def test_a_stream_that_is_closed_hangs_up(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enhancing, "HEARTBEAT_SECONDS", 0.01)
    with client_of(make_app, stall) as (client, server):
        service: Service = client.application.extensions["whisper_service"]
        response = client.post("/transcribe", data=AUDIO, query_string={"stream": "true"})
        assert b": keep-alive\n\n" in response.iter_encoded()  # the clean-up goes on
        assert server.called.wait(WAIT_SECONDS)
        assert service.in_flight == 1
        response.close()
        assert server.hung_up.wait(WAIT_SECONDS)
        assert service.in_flight == 0


@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_client_that_hangs_up_ends_the_clean_up(stream: str) -> None:
    with (
        chat_server(stall) as chat,
        running_server(llm_base_url=chat.base_url, llm_model="gemma3") as server,
        server.connect() as connection,
    ):
        head = f"POST /transcribe?stream={stream} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(AUDIO)}\r\n\r\n"
        connection.sendall(head.encode() + AUDIO)
        wait_until(lambda: any(call.path.endswith("completions") for call in chat.calls), "the clean-up has begun")
        chat.hung_up.clear()  # by the question where the model runs
        connection.close()
        assert chat.hung_up.wait(WAIT_SECONDS)
        wait_until(lambda: server.get("/health").json()["requests"]["running"] == 0, "the engine is free")
        wait_until(lambda: re.search(r"status=499 .*enhancement=failed", server.log), "it is in the log")


def test_the_log_of_the_start_says_where_the_language_model_is(chat: ChatServer) -> None:
    url = chat.base_url.replace("//", "//user:secret@")
    with running_server(llm_base_url=url, llm_model="gemma3", llm_api_key="hush") as server:
        line = f"transcripts are cleaned up by gemma3 at {chat.base_url}, in Ollama on: GPU"
        wait_until(lambda: line in server.log, "the log says so")
        answer = server.post("/transcribe", data=AUDIO).json()
        assert answer["enhancement"]["text"] == CORRECTED
        assert not re.search("secret|hush", server.log + server.get("/health").text)


def test_a_server_that_stops_ends_a_clean_up_and_gives_the_transcript(make_app: MakeApp) -> None:
    with client_of(make_app, stall) as (client, server):
        service: Service = client.application.extensions["whisper_service"]

        def stop() -> None:
            server.called.wait(WAIT_SECONDS)
            service.stop(0)

        stopping = threading.Thread(target=stop)
        stopping.start()
        told = post(client).get_json()
        stopping.join(WAIT_SECONDS)
        assert server.hung_up.wait(WAIT_SECONDS)
    assert told["text"] == TEXT
    assert told["enhancement"]["reason"] == "the clean-up was cancelled"


def test_it_is_counted_and_written_down(app: Flask, client: FlaskClient) -> None:
    assert value(client, "whisper_enhancements_total", status="enhanced") is None
    post(client)
    post(client, SILENCE.read_bytes())
    assert value(client, "whisper_enhancements_total", status="enhanced") == 1
    assert value(client, "whisper_enhancements_total", status="skipped") == 1
    assert value(client, "whisper_enhancement_seconds_count") == 1
    with app.test_request_context("/transcribe", method="POST", data=AUDIO):
        app.preprocess_request()
        app.dispatch_request()
        assert g.record["enhancement"] == "enhanced"
        assert g.record["enhance_seconds"] > 0


def test_the_document_has_it(app: Flask) -> None:
    document = openapi.document(app)["components"]["schemas"]
    assert "enhance" in document["Parameters"]["properties"]
    assert "enhancement" in document["Answer"]["properties"]
    assert set(document["CleanUp"]["properties"]) == {"status", "text", "reason", "model"}
