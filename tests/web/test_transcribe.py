"""`POST /transcribe` as a client sees it."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.web.busy_engine import WAIT_SECONDS, busy
from tests.web.conftest import MakeApp
from tests.web.test_running import AUDIO, TEXT, file_server, send_audio
from whisperlib import assets, formats
from whisperlib.binding import EncoderWindow
from whisperlib.encoder.engine import OpenVinoEncoder
from whisperlib.errors import EngineError
from whisperlib.formats import MEDIA_TYPES
from whisperlib.job import TranscriptionStream
from whisperlib.options import TranscribeOptions
from whisperlib.web import openapi, schemas
from whisperlib.web.service import Service

LONG = (assets.SAMPLES / "long_slt75.flac").read_bytes()
FORM = "application/x-www-form-urlencoded"
Event = tuple[str, dict[str, Any]]


@pytest.fixture
def app(make_app: MakeApp) -> Flask:
    return make_app(threads=1, concurrency=1, url_allow="127.0.0.1")


@pytest.fixture
def url() -> Iterator[str]:
    """Address of the sample on a server of the loopback."""
    with file_server(send_audio) as url:
        yield url


class RecordingBody(io.BytesIO):
    """A body that tells whether anybody read it."""

    was_read = False

    def __init__(self) -> None:
        super().__init__(AUDIO)

    def read(self, size: int | None = -1, /) -> bytes:
        self.was_read = True
        return super().read(size)

    def readinto(self, buffer: Any, /) -> int:
        self.was_read = True
        return super().readinto(buffer)


def post(client: FlaskClient, data: Any = AUDIO, **query: Any) -> TestResponse:
    return client.post("/transcribe", data=data, query_string=query)


def events_of(response: TestResponse) -> list[Event]:
    """Return the (name, data) of every event."""
    assert response.status_code == 200, response.text
    assert response.content_type == "text/event-stream; charset=utf-8"
    blocks = response.text.removesuffix("\n\n").split("\n\n")
    lines = [block.split("\n") for block in blocks]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in lines]


def the_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two answers tell the same, whatever time they took, and whatever their ids."""
    return {**one, "timings": None, "id": None} == {**other, "timings": None, "id": None}


def error_of(response: TestResponse) -> dict[str, Any]:
    error: dict[str, Any] = response.get_json()["error"]
    return error


def test_the_documented_curl_command_works_as_it_stands(client: FlaskClient, url: str) -> None:
    response = client.post("/transcribe", data=json.dumps({"audio_url": url}), content_type=FORM)
    assert response.status_code == 200
    assert response.get_json()["text"] == TEXT
    assert response.get_json()["timings"]["fetch"] > 0


def test_every_way_in_gives_the_same_text(client: FlaskClient, url: str) -> None:
    answers = [
        client.post("/transcribe", json={"audio_url": url}),
        client.post("/transcribe", data={"audio_url": url}),
        client.post("/transcribe", data={"audio_url": url}, content_type="multipart/form-data"),
        client.post("/transcribe", data={"file": (io.BytesIO(AUDIO), "a.flac")}),
        client.post("/transcribe", data=AUDIO, content_type="audio/flac"),
        client.post("/transcribe", data=AUDIO, content_type=FORM),
        client.post("/transcribe", query_string={"audio_url": url}),
    ]
    assert [answer.status_code for answer in answers] == [200] * len(answers)
    assert {answer.get_json()["text"] for answer in answers} == {TEXT}


def test_the_answer_tells_the_text_its_segments_and_the_seconds_it_took(client: FlaskClient) -> None:
    answer = post(client).get_json()
    schemas.Answer.model_validate(answer)
    timings = answer.pop("timings")
    assert re.fullmatch("[0-9a-f]{32}", answer.pop("id"))
    assert answer == {
        "text": TEXT,
        "language": "en",
        "duration": 6.343,
        "segments": [{"id": 0, "start": 0.12, "end": 5.74, "text": TEXT}],
        "model": "micro",
        "complete": True,
    }
    assert set(timings) == {"fetch", "decode", "queue", "vad", "inference", "total"}
    assert timings["fetch"] == 0
    assert timings["total"] + 0.001 >= timings["decode"] + timings["queue"] + timings["vad"] + timings["inference"] > 0


def test_silence_has_no_language(client: FlaskClient) -> None:
    answer = post(client, (assets.SAMPLES / "silence_white5_0001.flac").read_bytes()).get_json()
    assert (answer["text"], answer["language"], answer["segments"]) == ("", None, [])


def test_words_come_when_they_are_asked_for(client: FlaskClient) -> None:
    answer = post(client, word_timestamps="true").get_json()
    schemas.Answer.model_validate(answer)
    assert [word["word"] for word in answer["words"]] == TEXT.split()
    assert "words" not in answer["segments"][0]
    assert "words" not in post(client).get_json()


def test_the_verbose_answer_has_openais_segments(client: FlaskClient, service: Service) -> None:
    answer = post(client, response_format="verbose_json").get_json()
    schemas.Answer.model_validate(answer)
    schemas.VerboseSegment.model_validate(answer["segments"][0])
    result = service.adapter.transcribe(AUDIO)
    assert answer["segments"] == [formats.segment_to_dict(segment) for segment in result.segments]
    assert answer["task"] == "transcribe"


@pytest.mark.parametrize("response_format", sorted(set(MEDIA_TYPES) - {"json", "verbose_json"}))
def test_a_text_format_comes_as_text_of_its_type(client: FlaskClient, service: Service, response_format: str) -> None:
    response = post(client, response_format=response_format)
    assert response.status_code == 200
    assert response.content_type == f"{MEDIA_TYPES[response_format]}; charset=utf-8"
    assert response.text == formats.render(service.adapter.transcribe(AUDIO), response_format)


def test_options_reach_the_engine(client: FlaskClient) -> None:
    answer = post(client, LONG, offset_seconds="10", duration_seconds="20", max_segment_length="30").get_json()
    assert answer["segments"][0]["start"] >= 10
    assert answer["segments"][-1]["end"] <= 30
    assert len(answer["segments"]) > 3


def test_every_option_is_documented(app: Flask) -> None:
    told = openapi.document(app)
    operation = told["paths"]["/transcribe"]["post"]
    form = told["components"]["schemas"]["Form"]["properties"]
    options = set(TranscribeOptions.model_fields) - set(schemas.SERVER_OPTIONS)
    assert set(form) == {*options, "audio_url", "model", "keep_alive", "response_format", "stream", "enhance", "file"}
    assert {parameter["name"] for parameter in operation["parameters"]} == set(form) - {"file"}
    assert form["beam_size"]["maximum"] == 8
    answers = operation["responses"]["200"]["content"]
    assert set(answers) == {*MEDIA_TYPES.values(), "text/event-stream"}
    assert answers["application/json"] == {"schema": {"$ref": "#/components/schemas/Answer"}}


def test_nothing_of_a_request_is_left_for_the_next(client: FlaskClient) -> None:
    before = post(client).get_json()
    other = {"initial_prompt": "A list:", "word_timestamps": "true", "vad": "no", "beam_size": "1", "temperature": "1"}
    assert post(client, **other).status_code == 200
    assert post(client, beam_size="nine").status_code == 400
    after = post(client).get_json()
    assert the_same(after, before)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({}, (400, "missing_audio", "file")),
        ({"data": b"not audio"}, (400, "invalid_audio", None)),
        ({"data": {"file": (io.BytesIO(), "a.wav")}}, (400, "invalid_audio", None)),
        ({"data": AUDIO, "query_string": {"beam_size": "abc"}}, (400, "invalid_option", "beam_size")),
        ({"data": AUDIO, "query_string": {"beams": "5"}}, (400, "unknown_field", "beams")),
        ({"data": AUDIO, "query_string": {"language": "xx"}}, (400, "invalid_option", "language")),
        ({"data": AUDIO, "query_string": {"model": "large-v3"}}, (404, "model_not_found", "model")),
        (
            {"data": AUDIO, "query_string": {"stream": "1", "response_format": "srt"}},
            (400, "invalid_option", "response_format"),
        ),
        ({"data": AUDIO, "query_string": {"stream": "1", "model": "x"}}, (404, "model_not_found", "model")),
        ({"data": b"not audio", "query_string": {"stream": "1"}}, (400, "invalid_audio", None)),
        ({"data": AUDIO, "query_string": {"offset_seconds": "100"}}, (400, "invalid_audio", None)),
        ({"data": AUDIO, "query_string": {"timeout_seconds": "1e-9"}}, (504, "deadline_exceeded", None)),
        ({"json": {"audio_url": "ftp://127.0.0.1/a.wav"}}, (400, "url_refused", None)),
        ({"json": {"audio_url": ""}}, (400, "url_refused", None)),
        ({"json": {"audio_url": "http://127.0.0.2/a.wav", "stream": True}}, (400, "url_refused", None)),
        ({"json": []}, (400, "invalid_json", None)),
    ],
)
def test_a_refusal_names_the_field_and_comes_as_a_status_also_of_a_stream(
    client: FlaskClient, service: Service, request_: dict[str, Any], expected: tuple[int, str, str | None]
) -> None:
    response = client.post("/transcribe", **request_)
    error = error_of(response)
    assert (response.status_code, error["code"], error["param"]) == expected
    assert error["message"]
    assert service.in_flight == 0


def test_the_loaded_model_may_be_named(client: FlaskClient) -> None:
    assert post(client, model="micro").get_json()["model"] == "micro"


def test_a_body_over_the_limit_is_refused(make_app: MakeApp) -> None:
    client = make_app(max_body_bytes=1024).test_client()
    assert post(client).status_code == 413
    assert client.post("/transcribe", data={"file": (io.BytesIO(AUDIO), "a.flac")}).status_code == 413


def test_a_stream_gives_progress_segments_and_the_whole_answer(client: FlaskClient) -> None:
    expected = post(client, LONG).get_json()
    events = events_of(post(client, LONG, stream="true"))
    names = [name for name, _ in events]
    assert names[-1] == "result"
    assert names.count("result") == 1
    assert the_same(events[-1][1], expected)
    assert [data for name, data in events if name == "segment"] == expected["segments"]
    fractions = [data["progress"] for name, data in events if name == "progress"]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    # The first window's segments come while the later ones are still to be done.
    assert names.index("segment") < max(i for i, name in enumerate(names) if name == "progress")


def test_a_stream_has_words_in_its_segments_if_they_are_asked_for(client: FlaskClient) -> None:
    events = events_of(post(client, stream="true", word_timestamps="true", response_format="verbose_json"))
    segment = next(data for name, data in events if name == "segment")
    schemas.Segment.model_validate(segment)
    assert [word["word"] for word in segment["words"]] == TEXT.split()
    assert events[-1][1]["words"] == segment["words"]
    assert events[-1][1]["segments"][0]["tokens"]


def test_a_client_that_accepts_only_events_gets_them(client: FlaskClient) -> None:
    response = client.post("/transcribe", data=AUDIO, headers={"Accept": "text/event-stream"})
    assert events_of(response)[-1][1]["text"] == TEXT


def test_a_failure_within_a_stream_is_its_last_event(
    client: FlaskClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: TranscriptionStream) -> Any:
        """A double: the engine does not fail on demand."""
        raise EngineError("whisper_full returned -6", -6)

    monkeypatch.setattr(TranscriptionStream, "result", property(fail))
    events = events_of(post(client, stream="true"))
    assert [name for name, _ in events if name not in {"progress", "segment"}] == ["error"]
    assert events[-1][0] == "error"
    assert events[-1][1]["error"]["code"] == "engine_failed"
    assert service.in_flight == 0


def test_a_failure_of_the_openvino_encoder_is_told_and_the_next_request_is_right(
    make_app: MakeApp, accelerated_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = OpenVinoEncoder.__call__

    def refuse(self: OpenVinoEncoder, window: EncoderWindow) -> None:
        """Give OpenVINO a mel band too many."""
        encode(self, dataclasses.replace(window, mel=np.vstack([window.mel, window.mel[:1]])))

    app = make_app(model_size=str(accelerated_model), encoder="openvino")
    client, service = app.test_client(), app.extensions["whisper_service"]
    with monkeypatch.context() as patch:
        patch.setattr(OpenVinoEncoder, "__call__", refuse)
        with pytest.raises(EngineError, match="the OpenVINO encoder failed: "):
            service.adapter.transcribe(AUDIO)
        response = post(client)
        assert (response.status_code, response.get_json()["error"]["code"]) == (500, "engine_failed")
        events = events_of(post(client, stream="true"))
        assert (events[-1][0], events[-1][1]["error"]["code"]) == ("error", "engine_failed")
    assert post(client).get_json()["text"] == TEXT
    assert service.in_flight == 0


def test_a_stop_within_a_stream_is_its_last_event(client: FlaskClient, service: Service) -> None:
    with busy(service.adapter) as release:
        response = post(client, stream="true")
        stop = threading.Thread(target=service.stop, args=(0,))
        stop.start()
        events = events_of(response)
        release.set()
        stop.join(WAIT_SECONDS)
    assert events[-1][0] == "error"
    assert events[-1][1]["error"]["code"] == "unavailable"


def test_a_client_that_leaves_a_stream_frees_its_place(client: FlaskClient, service: Service) -> None:
    response = client.post("/transcribe", data=AUDIO, query_string={"stream": "1"}, buffered=False)
    assert service.in_flight == 1
    response.close()
    assert service.in_flight == 0
    assert post(client).get_json()["text"] == TEXT


def test_a_full_server_answers_429_without_reading_the_body(make_app: MakeApp) -> None:
    app = make_app(threads=1, concurrency=1, max_wait_seconds=0)
    service: Service = app.extensions["whisper_service"]
    for content_type in ("audio/flac", "multipart/form-data; boundary=x", FORM, "application/json"):
        body = RecordingBody()
        with busy(service.adapter):
            response = app.test_client().post(
                "/transcribe", input_stream=body, content_length=len(AUDIO), content_type=content_type
            )
        assert response.status_code == 429
        assert int(response.headers["Retry-After"]) >= 1
        assert error_of(response)["code"] == "overloaded"
        assert not body.was_read
    body = RecordingBody()
    assert app.test_client().post("/transcribe", input_stream=body, content_length=len(AUDIO)).status_code == 200
    assert body.was_read


def test_a_full_server_fetches_nothing(make_app: MakeApp) -> None:
    fetched: list[str] = []

    def count(handler: BaseHTTPRequestHandler) -> None:
        fetched.append(handler.path)
        send_audio(handler)

    app = make_app(threads=1, concurrency=1, max_wait_seconds=0, url_allow="127.0.0.1")
    with file_server(count) as url:
        with busy(app.extensions["whisper_service"].adapter):
            assert app.test_client().post("/transcribe", json={"audio_url": url}).status_code == 429
        assert not fetched
        assert app.test_client().post("/transcribe", json={"audio_url": url}).status_code == 200
        assert fetched
