"""Request ids, and the one line that each request leaves in the log."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from flask import g
from flask.testing import FlaskClient

from tests.web.conftest import MakeApp, bare_app
from tests.web.test_running import AUDIO, file_server, send_audio
from whisperlib import assets
from whisperlib.settings import Settings
from whisperlib.web import log

LONG = (assets.SAMPLES / "long_slt75.flac").read_bytes()
Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def configure(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Lines]]:
    """Have the process log as a server with these settings does; give what reads the lines so far, as JSON."""
    loggers = [logging.getLogger(name) for name in (None, "whisperlib", "whisperlib.native")]
    levels, root = [logger.level for logger in loggers], loggers[0]
    handlers, root.handlers = root.handlers, []
    lines: list[dict[str, Any]] = []

    def read() -> list[dict[str, Any]]:
        lines.extend(map(json.loads, capsys.readouterr().err.splitlines()))
        return lines

    def begin(**settings: str) -> Lines:
        log.configure(Settings(**{"log_format": "json", **settings}))
        return read

    yield begin
    root.handlers = handlers
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def requests_of(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["logger"] == "whisperlib.web.request"]


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/docs", "/not/there", "/transcribe"])
def test_every_answer_bears_the_clients_id(path: str) -> None:
    client = bare_app().test_client()
    sane = "req-7.a_B:c/d+e=9"
    assert client.get(path, headers={"x-request-id": sane}).headers["x-request-id"] == sane


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, 'quote"', "{}", "semi;colon", "\xe9"])
def test_an_id_that_is_not_sane_is_replaced(given: str) -> None:
    answered = bare_app().test_client().get("/health", headers={"x-request-id": given}).headers["x-request-id"]
    assert re.fullmatch(r"req_[0-9a-f]{24}", answered)


def test_every_request_has_an_id_of_its_own() -> None:
    client = bare_app().test_client()
    assert len({client.get("/health").headers["x-request-id"] for _ in range(20)}) == 20


def test_a_refusal_and_a_failure_bear_an_id_too() -> None:
    app = bare_app(api_keys="first", max_body_bytes=1024)
    app.add_url_rule("/fail", "fail", lambda: str(1 // 0))
    client, key = app.test_client(), {"Authorization": "Bearer first"}
    answers = [
        client.get("/v1/models"),
        client.get("/fail", headers=key),
        client.post("/transcribe", data=bytes(2000), headers=key),
    ]
    assert [answer.status_code for answer in answers] == [401, 500, 503]
    assert all(answer.headers["x-request-id"].startswith("req_") for answer in answers)
    assert all(answer.headers["openai-processing-ms"].isdigit() for answer in answers)


def test_a_transcription_leaves_one_line_with_what_it_took(
    configure: Callable[..., Lines], client: FlaskClient
) -> None:
    lines = configure()
    response = client.post("/transcribe?beam_size=2", data=AUDIO, headers={"x-request-id": "mine"}, buffered=True)
    assert response.status_code == 200
    (line,) = requests_of(lines())
    assert datetime.fromisoformat(line["time"]).utcoffset() == timedelta(0)
    named = ("level", "request_id", "client", "method", "path", "status", "bytes_in", "model", "audio_seconds")
    assert [line[name] for name in named] == [
        "INFO",
        "mine",
        "127.0.0.1",
        "POST",
        "/transcribe",
        200,
        len(AUDIO),
        "micro",
        pytest.approx(6.343, abs=0.001),
    ]
    for name in ("decode_seconds", "queue_seconds", "vad_seconds", "inference_seconds", "real_time_factor"):
        assert line[name] >= 0
    assert line["milliseconds"] >= line["inference_seconds"] * 1000
    assert "error" not in line


def test_a_refusal_leaves_its_code(configure: Callable[..., Lines], client: FlaskClient) -> None:
    lines = configure()
    client.post("/transcribe", data=b"not audio", buffered=True)
    (line,) = requests_of(lines())
    assert (line["status"], line["error"]) == (400, "invalid_audio")


def test_the_line_of_a_stream_comes_at_its_end(configure: Callable[..., Lines], client: FlaskClient) -> None:
    lines = configure()
    response = client.post("/transcribe", data=AUDIO, query_string={"stream": "1"}, buffered=False)
    chunks = iter(response.response)
    assert next(chunks)
    assert not requests_of(lines())
    assert list(chunks)
    response.close()
    (line,) = requests_of(lines())
    assert line["status"] == 200
    assert line["audio_seconds"] == pytest.approx(6.343, abs=0.001)
    assert "error" not in line


def test_a_client_that_leaves_a_stream_is_written_down(configure: Callable[..., Lines], client: FlaskClient) -> None:
    lines = configure()
    response = client.post("/transcribe", data=LONG, query_string={"stream": "1"}, buffered=False)
    next(iter(response.response))
    response.close()
    (line,) = requests_of(lines())
    assert (line["status"], line["error"]) == (499, "client_gone")


def test_every_line_of_a_request_bears_its_id_also_within_a_stream(configure: Callable[..., Lines]) -> None:
    lines, app = configure(), bare_app()

    def view() -> Iterator[str]:
        logging.getLogger("whisperlib.test").info("in the view")

        def pieces() -> Iterator[str]:
            yield "one"
            logging.getLogger("whisperlib.test").info("in the stream")

        return pieces()

    app.add_url_rule("/pieces", "pieces", view)
    for name in ("first", "second"):
        app.test_client().get("/pieces", headers={"x-request-id": name}, buffered=True)
    told = [(line["message"], line["request_id"]) for line in lines()]
    assert told == [
        (message, name) for name in ("first", "second") for message in ("in the view", "in the stream", "request")
    ]


def test_what_the_engine_says_bears_the_id_of_its_request(configure: Callable[..., Lines], client: FlaskClient) -> None:
    lines = configure(log_level="DEBUG")
    for name in ("first", "second"):
        client.post("/transcribe", data=AUDIO, headers={"x-request-id": name}, buffered=True)
    of_the_detector = [
        line["request_id"]
        for line in lines()
        if line["logger"] == "whisperlib.native" and line["message"].startswith("whisper_vad_detect_speech")
    ]
    assert list(dict.fromkeys(of_the_detector)) == ["first", "second"]


def test_what_a_route_records_is_in_the_line(configure: Callable[..., Lines]) -> None:
    lines, app = configure(), bare_app()
    app.add_url_rule("/thing/<name>", "thing", lambda name: g.record.update(colour="green", size=None) or name)
    app.test_client().get("/thing/secret", buffered=True)
    (line,) = requests_of(lines())
    assert (line["path"], line["colour"]) == ("/thing/<name>", "green")
    assert "size" not in line


@pytest.mark.parametrize("path", log.PROBES)
def test_probes_are_written_down_only_when_debugging(configure: Callable[..., Lines], path: str) -> None:
    client = bare_app().test_client()
    lines = configure()
    client.get(path, buffered=True)
    assert not requests_of(lines())
    lines = configure(log_level="DEBUG")
    client.get(path, buffered=True)
    (line,) = requests_of(lines())
    assert (line["level"], line["path"]) == ("DEBUG", path)


def test_nothing_private_is_written_down(configure: Callable[..., Lines], make_app: MakeApp) -> None:
    lines = configure(log_level="DEBUG")
    client = make_app(url_allow="127.0.0.1", api_keys="simsalabim").test_client()
    key = {"Authorization": "Bearer simsalabim"}
    with file_server(send_audio) as url:
        signed = f"{url}?signature=sesame"
        with_password = signed.replace("//", "//user:sesame@")
        prompt = {"initial_prompt": "Abracadabra"}
        ended = [
            client.post("/transcribe", json={"audio_url": signed, **prompt}, headers=key, buffered=True),
            client.post("/transcribe", query_string={"audio_url": signed, **prompt}, headers=key, buffered=True),
            client.post("/transcribe", query_string={"stream": "1", **prompt}, data=AUDIO, headers=key, buffered=True),
            client.post(
                "/v1/audio/transcriptions",
                data={"file": (io.BytesIO(AUDIO), "a.flac"), "prompt": "Abracadabra"},
                headers=key,
                buffered=True,
            ),
        ]
        refused = [
            client.post("/transcribe", headers={"x-api-key": "open sesame"}, buffered=True),
            client.post("/transcribe", json={"audio_url": with_password}, headers=key, buffered=True),
            client.post("/transcribe", json={"audio_url": "http://127.0.0.2/a?sesame"}, headers=key, buffered=True),
        ]
    assert [response.status_code for response in ended] == [200] * 4
    assert all("train to Paris" in response.text for response in ended)
    assert refused[0].status_code == 401
    text = json.dumps(lines())
    assert len(requests_of(lines())) == len(ended) + len(refused)
    for secret in ("sesame", "simsalabim", "Abracadabra", "Paris", "signature"):
        assert secret not in text


def test_a_traceback_stays_within_its_json_line(configure: Callable[..., Lines]) -> None:
    lines, app = configure(), bare_app()
    app.add_url_rule("/fail", "fail", lambda: str(1 // 0))
    app.test_client().get("/fail", headers={"x-request-id": "mine"}, buffered=True)
    (line,) = (line for line in lines() if line["level"] == "ERROR")
    assert "ZeroDivisionError" in line["traceback"]
    assert line["request_id"] == "mine"


def test_text_lines_have_the_same_fields(configure: Callable[..., Lines], capsys: pytest.CaptureFixture[str]) -> None:
    configure(log_format="text")
    client = bare_app().test_client()
    client.get("/a%0Ab%20c", headers={"x-request-id": "mine"}, buffered=True)
    (line,) = capsys.readouterr().err.splitlines()
    assert " INFO request request_id=mine client=127.0.0.1 method=GET " in line
    assert r'path="/a\nb c"' in line
    assert "status=404" in line
    assert "error=not_found" in line


@pytest.mark.parametrize(("level", "expected"), [("auto", "iwe"), ("DEBUG", "diwe"), ("WARNING", "we"), ("ERROR", "e")])
def test_the_level_is_the_one_that_is_set(
    configure: Callable[..., Lines], capsys: pytest.CaptureFixture[str], level: str, expected: str
) -> None:
    configure(log_level=level, log_format="text")
    logger = logging.getLogger("whisperlib.somewhere")
    for write, letter in ((logger.debug, "d"), (logger.info, "i"), (logger.warning, "w"), (logger.error, "e")):
        write("letter %s", letter)
    logging.getLogger("another.library").info("letter x")
    assert "".join(re.findall("letter (.)", capsys.readouterr().err)) == expected
