"""`/batches` by the real application, and by a real server that is killed in the middle."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
import re
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests import web_server
from tests.chat_server import Call, chat_server, stall
from tests.web.busy_engine import busy
from tests.web.conftest import MakeApp, bare_app, put_model
from tests.web.running_server import RunningServer, running_server, wait_until
from tests.web.test_metrics import value
from whisperlib import assets, pool
from whisperlib.batches import NewBatch, NewItem, runner
from whisperlib.batches.sqlite import SqliteQueue
from whisperlib.enhance import Enhancement, Enhancer
from whisperlib.errors import (
    AudioDecodeError,
    DeadlineExceeded,
    EngineError,
    MemoryBudgetError,
    ModelFileError,
    OverloadedError,
    TranscriptionCancelled,
    UnavailableError,
)
from whisperlib.options import TranscribeOptions
from whisperlib.results import Segment, TokenLogprob, Transcription
from whisperlib.settings import Settings
from whisperlib.web import batch_intake, batching, create_app, openapi
from whisperlib.web.running import Outcome
from whisperlib.web.schemas import Parameters
from whisperlib.web.service import Service

TRAIN, GERMAN, DOCTOR = "rms_010.flac", "german_001.flac", "seen_020.flac"
LONG = "long_slt75.flac"
BEGINNING = {"duration_seconds": "30"}  # of the long one; the others are shorter
CODE = "The code is five zero one nine."  # which it begins with
URL = "http://audio.example/a.flac"
CORRECTED = "Phone the doctor on Thursday."


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "batches"


@pytest.fixture
def app_of(make_app: MakeApp, place: Path) -> Callable[..., Flask]:
    """Make an application whose batches lie in `place`."""
    return lambda **settings: make_app(batches=str(place), **settings)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    """One application for all tests that can share it."""
    settings: dict[str, Any] = {"model_size": "micro", "threads": 1, "concurrency": 2, "url_allow": "127.0.0.1"}
    service = Service(Settings(batches=str(tmp_path_factory.mktemp("batches")), **settings))
    service.start()
    yield create_app(service)
    service.stop(0)


@pytest.fixture(scope="module")
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def uploads(app: Flask) -> list[Path]:
    return list(Path(app.extensions["whisper_service"].settings.batches, "uploads").iterdir())


@pytest.fixture
def files() -> Iterator[str]:
    """An address below which the samples lie; /busy answers with 503, /silent never."""

    def answer(request: web_server.Request) -> None:
        name = request.target.removeprefix("/")
        if name == "busy":
            web_server.reply(b"", 503)(request)
        elif name == "silent":
            request.await_hang_up()
        else:
            web_server.reply((assets.SAMPLES / name).read_bytes())(request)

    with web_server.serve(answer) as server:
        yield server.url


def upload(name: str) -> tuple[io.BytesIO, str]:
    return io.BytesIO((assets.SAMPLES / name).read_bytes()), name


def text_of(name: str) -> str:
    return assets.sample_text(name)


def finished(client: FlaskClient, location: str, state: str = "done") -> Any:
    """Wait for the end of a batch; return what is told of it."""
    wait_until(lambda: client.get(location).get_json()["state"] == state, f"it is {state}")
    return client.get(location).get_json()


def error_of(response: Any) -> tuple[int, str, str]:
    error = response.get_json()["error"]
    return response.status_code, error["code"], error["param"]


def correct(call: Call) -> None:
    call.reply(call.transcript.replace("Call", "Phone"))


class TestResults:
    def test_files_and_addresses_are_transcribed_in_their_order(
        self, client: FlaskClient, files: str, app: Flask
    ) -> None:
        data = {
            "file": [upload(DOCTOR), upload(GERMAN)],
            "audio_url": [f"{files}/{TRAIN}"],
            "word_timestamps": "true",
            "vad_options.threshold": "0.4",
        }
        answer = client.post("/batches", data=data)
        assert answer.status_code == 202
        told = answer.get_json()
        assert re.fullmatch(r"batch_[0-9a-f]{32}", told["id"])
        assert answer.headers["Location"] == f"/batches/{told['id']}"
        assert (told["total"], told["model"], told["response_format"]) == (3, None, "json")
        told = finished(client, answer.headers["Location"])
        assert [item["index"] for item in told["items"]] == [0, 1, 2]
        assert [item["name"] for item in told["items"]] == [DOCTOR, GERMAN, f"{files}/{TRAIN}"]
        assert [item["result"]["text"] for item in told["items"]] == [*map(text_of, (DOCTOR, GERMAN, TRAIN))]
        assert (told["fraction"], told["counts"]["done"], told["remaining_seconds"]) == (1, 3, 0)
        assert told["audio_seconds"] == pytest.approx(sum(item["result"]["duration"] for item in told["items"]))
        assert told["created_at"] <= told["started_at"] <= told["finished_at"]
        alone = client.post("/transcribe", data={**data, "file": upload(DOCTOR), "audio_url": []}).get_json()
        first = told["items"][0]["result"]
        del alone["id"]  # what is in a batch can be asked for there
        assert {**first, "timings": None} == {**alone, "timings": None}
        assert told["items"][2]["result"]["timings"]["fetch"] > 0
        assert uploads(app) == []

    def test_json_gives_each_its_options_and_its_name(self, client: FlaskClient, files: str) -> None:
        items = [
            {"audio_url": f"{files}/{DOCTOR}", "name": "doctor", "options": {"word_timestamps": False}},
            {"audio_url": f"{files}/{GERMAN}", "options": {"vad_options": {"pad_seconds": 0.5}}},
        ]
        options = {"word_timestamps": True, "vad_options": {"threshold": 0.4}}
        answer = client.post("/batches", json={"items": items, "options": options, "model": "micro"})
        told = finished(client, answer.headers["Location"])
        assert told["model"] == "micro"
        assert [item["name"] for item in told["items"]] == ["doctor", f"{files}/{GERMAN}"]
        assert ["words" in item["result"] for item in told["items"]] == [False, True]

    def test_a_password_in_an_address_is_not_told(self, client: FlaskClient, files: str) -> None:
        url = files.replace("//", "//user:hush@") + f"/{DOCTOR}?token=hush"
        answer = client.post("/batches", json={"items": [{"audio_url": url}]})
        assert "hush" not in client.get(answer.headers["Location"]).text

    def test_results_are_lines_in_any_format(self, client: FlaskClient) -> None:
        data = {"file": [upload(TRAIN), (io.BytesIO(b"no audio"), "bad"), upload(DOCTOR)], "response_format": "text"}
        location = client.post("/batches", data=data).headers["Location"]
        finished(client, location)
        lines = client.get(f"{location}/results")
        assert lines.mimetype == "application/jsonl"
        told = [json.loads(line) for line in lines.text.splitlines()]
        assert [item["index"] for item in told] == [0, 1, 2]
        assert [item["state"] for item in told] == ["done", "failed", "done"]
        assert told[0]["result"] == f"{text_of(TRAIN)}\n"
        assert told[1]["error"]["code"] == "invalid_audio"
        assert "result" not in told[1]
        for response_format, part in (("srt", "00:00:0"), ("vtt", "WEBVTT"), ("tsv", "start\tend")):
            lines = client.get(f"{location}/results", query_string={"response_format": response_format})
            assert part in json.loads(lines.text.splitlines()[0])["result"]
        verbose = client.get(f"{location}?response_format=verbose_json").get_json()["items"][0]["result"]
        assert verbose["segments"][0]["tokens"]

    def test_what_json_cannot_say_is_kept(self) -> None:
        segment = Segment(0, 0.0, 1.0, "ü", avg_logprob=math.inf, logprobs=(TokenLogprob(b"\xc3", -1.0),))
        outcome = Outcome(Transcription("ü", (segment,), "de", 1.0, cache="hit"), 0.5, 1.5)
        read = batching.decode(batching.encode(outcome))
        assert read == outcome
        assert read.result.cache == "hit"

    def test_a_result_of_another_version_is_an_error_of_its_item(self, client: FlaskClient, app: Flask) -> None:
        location = client.post("/batches", data={"file": upload(DOCTOR)}).headers["Location"]
        finished(client, location)
        with sqlite3.connect(Path(app.extensions["whisper_service"].settings.batches, "batches.sqlite3")) as db:
            db.execute("UPDATE items SET result = '{}'")
        db.close()
        (item,) = client.get(location).get_json()["items"]
        assert (item["state"], item["error"]["code"]) == ("failed", "internal_error")

    def test_items_come_in_pages(self, client: FlaskClient) -> None:
        data = {"audio_url": [f"http://127.0.0.2/{number}" for number in range(5)]}
        location = client.post("/batches", data=data, content_type="multipart/form-data").headers["Location"]
        pages, after = [], -1
        while after is not None:
            page = client.get(location, query_string={"after": after, "limit": 2}).get_json()
            pages.append([item["index"] for item in page["items"]])
            after = page["next_after"]
        assert pages == [[0, 1], [2, 3], [4]]
        assert client.get(location, query_string={"limit": 0}).get_json()["items"] == []

    def test_batches_are_listed_the_newest_first(self, client: FlaskClient) -> None:
        body = {"items": [{"audio_url": "http://127.0.0.2/"}]}
        ids = [client.post("/batches", json=body).get_json()["id"] for _ in range(3)]
        first = client.get("/batches?limit=2").get_json()
        assert [batch["id"] for batch in first["batches"]] == [ids[2], ids[1]]
        assert first["next_after"] == ids[1]
        rest = client.get("/batches", query_string={"after": ids[1], "limit": 100}).get_json()
        assert (rest["batches"][0]["id"], rest["next_after"]) == (ids[0], None)


class TestErrors:
    def test_an_item_fails_with_what_transcribe_would_say(self, client: FlaskClient, files: str) -> None:
        urls = ["http://127.0.0.2/a.flac", f"{files}/refs.json"]
        location = client.post("/batches", json={"items": [{"audio_url": url} for url in urls]}).headers["Location"]
        told = finished(client, location)
        for url, item in zip(urls, told["items"], strict=True):
            alone = client.post("/transcribe", json={"audio_url": url}).get_json()
            assert item["state"] == "failed"
            assert item["error"] == alone["error"]
        assert (told["state"], told["counts"]["failed"], told["fraction"]) == ("done", 2, 1)

    @pytest.mark.parametrize(
        "case", [("busy", 60, "url_unreachable"), ("silent", 0.1, "url_timeout")], ids=lambda case: case[0]
    )
    def test_a_remote_that_is_busy_or_silent_is_asked_again(
        self, app_of: Callable[..., Flask], files: str, monkeypatch: pytest.MonkeyPatch, case: tuple[str, float, str]
    ) -> None:
        name, seconds, code = case
        monkeypatch.setattr(runner, "RETRY_SECONDS", (0.0, 0.0, 0.0))
        client = app_of(url_allow="127.0.0.1", fetch_timeout_seconds=seconds).test_client()
        location = client.post("/batches", json={"items": [{"audio_url": f"{files}/{name}"}]}).headers["Location"]
        assert finished(client, location)["items"][0]["error"]["code"] == code
        assert value(client, "whisper_fetches_total", outcome=code) == 4
        wait_until(lambda: value(client, "whisper_batch_items_total", state="failed") == 1, "it is counted")
        assert value(client, "whisper_batch_queued_items") == 0

    @pytest.mark.parametrize(
        ("error", "n_calls", "state"),
        [
            (EngineError("the encoder failed", -6), 3, "done"),
            (ModelFileError("the file is damaged"), 3, "done"),
            (UnavailableError("left alone for a while", 0.0), 3, "done"),
            (OSError(28, "No space left on device"), 3, "done"),
            (MemoryBudgetError("too large"), 1, "failed"),
            (DeadlineExceeded("too late"), 1, "failed"),
            (AudioDecodeError("not audio"), 1, "failed"),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_what_is_no_fault_of_the_item_is_tried_again(
        self, client: FlaskClient, monkeypatch: pytest.MonkeyPatch, error: Exception, n_calls: int, state: str
    ) -> None:
        monkeypatch.setattr(runner, "RETRY_SECONDS", (0.0, 0.0, 0.0))
        adapter, calls = client.application.extensions["whisper_service"].adapter, list[object]()
        transcribe = adapter.transcribe

        def fail_twice(source: Any, options: TranscribeOptions) -> Any:
            calls.append(source)
            if len(calls) < 3:
                raise error
            return transcribe(source, options)

        monkeypatch.setattr(adapter, "transcribe", fail_twice)
        told = finished(client, client.post("/batches", data={"file": upload(DOCTOR)}).headers["Location"])
        assert (told["items"][0]["state"], len(calls)) == (state, n_calls)

    def test_an_address_is_fetched_when_its_model_is_there(
        self, app_of: Callable[..., Flask], files: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client = app_of(url_allow="127.0.0.1").test_client()
        models, refusals = client.application.extensions["whisper_service"].pool, iter([True, True])
        lease = models.lease

        def lease_later(name: str, **keywords: Any) -> Any:
            if next(refusals, False):
                raise OverloadedError("requests use the memory that it needs", 0.0)
            return lease(name, **keywords)

        monkeypatch.setattr(models, "lease", lease_later)
        location = client.post("/batches", json={"items": [{"audio_url": f"{files}/{DOCTOR}"}]}).headers["Location"]
        assert finished(client, location)["items"][0]["result"]["text"] == text_of(DOCTOR)
        assert next(refusals, None) is None
        assert value(client, "whisper_fetches_total", outcome="ok") == 1

    def test_items_wait_for_a_model_that_is_not_there_for_a_while(
        self, app_of: Callable[..., Flask], place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING, "whisperlib"):
            app = app_of(model_root=tmp_path)
            batches, client = app.extensions["whisper_batches"], app.test_client()
            settings = json.dumps({"model": "tiny", "response_format": "json"})
            items = [NewItem(DOCTOR, "{}", upload=batches.queue.keep(upload(DOCTOR)[0])) for _ in range(3)]
            batch_id, _ = batches.queue.add(NewBatch(items, settings))
            finished(client, client.post("/batches", data={"file": upload(DOCTOR)}).headers["Location"])
            wait_until(lambda: "batches wait for their model" in caplog.text, "it is told")
            assert client.get(f"/batches/{batch_id}").get_json()["counts"]["queued"] == 3
            put_model(tmp_path, "tiny")
            assert finished(client, f"/batches/{batch_id}")["counts"]["done"] == 3
        assert caplog.text.count("batches wait for their model") == 1

    @pytest.mark.parametrize(
        ("body", "code", "param"),
        [
            ({}, "missing_audio", "items"),
            ({"items": []}, "missing_audio", "items"),
            ({"items": [{"audio_url": URL}, {}]}, "missing_audio", "items.1.audio_url"),
            ({"items": [{"audio_url": "file:///etc/passwd"}]}, "url_refused", "items.0.audio_url"),
            (
                {"items": [{"audio_url": URL, "options": {"beam_size": 9}}]},
                "invalid_option",
                "items.0.options.beam_size",
            ),
            (
                {"items": [{"audio_url": URL}, {"audio_url": URL, "options": {"language": "xx"}}]},
                "invalid_option",
                "items.1.options.language",
            ),
            ({"items": [{"audio_url": URL}], "options": {"temperature": 2}}, "invalid_option", "options.temperature"),
            ({"items": [{"audio_url": URL}], "options": {"audio_ctx": 3}}, "invalid_option", "options.audio_ctx"),
            (
                {"items": [{"audio_url": URL}], "options": {"vad_options": {"x": 1}}},
                "unknown_field",
                "options.vad_options.x",
            ),
            ({"items": [{"audio_url": URL, "beam_size": 3}]}, "unknown_field", "items.0.beam_size"),
            ({"items": [{"audio_url": URL}], "stream": True}, "unknown_field", "stream"),
            ({"items": [{"audio_url": URL, "options": {"threads": 2}}]}, "unknown_field", "items.0.options.threads"),
            ({"items": [{"audio_url": URL}], "response_format": "xml"}, "invalid_option", "response_format"),
            ({"items": [{"audio_url": URL, "name": ""}]}, "invalid_option", "items.0.name"),
            ({"items": [{"audio_url": URL}], "enhance": "always"}, "invalid_option", "enhance"),
            ({"items": [{"audio_url": URL, "enhance": "always"}]}, "invalid_option", "items.0.enhance"),
            ({"items": [{"audio_url": URL, "enhance": "often"}]}, "invalid_option", "items.0.enhance"),
        ],
    )
    def test_what_is_wrong_in_json_is_told_at_once_with_its_place(
        self, client: FlaskClient, body: Any, code: str, param: str
    ) -> None:
        before = client.get("/batches").get_json()
        assert error_of(client.post("/batches", json=body)) == (400, code, param)
        assert client.get("/batches").get_json() == before

    @pytest.mark.parametrize(
        ("fields", "code", "param"),
        [
            ({}, "missing_audio", "file"),
            ({"audio_url": "nonsense"}, "url_refused", "audio_url.0"),
            ({"audio_url": URL, "beam_size": "9"}, "invalid_option", "beam_size"),
            ({"audio_url": URL, "language": "xx"}, "invalid_option", "language"),
            ({"audio_url": URL, "stream": "true"}, "unknown_field", "stream"),
            ({"audio_url": URL, "enhance": "often"}, "invalid_option", "enhance"),
            ({"audio_url": URL, "enhance": "always"}, "invalid_option", "enhance"),
            ({"audio_url": URL, "max_wait_seconds": "1"}, "unknown_field", "max_wait_seconds"),
            ({"sound": (io.BytesIO(b"a"), "a.wav")}, "unknown_field", "sound"),
        ],
    )
    def test_what_is_wrong_in_a_form_is_told_at_once(
        self, client: FlaskClient, fields: Any, code: str, param: str
    ) -> None:
        before = client.get("/batches").get_json()
        answer = client.post("/batches", data=fields, content_type="multipart/form-data")
        assert error_of(answer) == (400, code, param)
        assert client.get("/batches").get_json() == before

    def test_other_bodies_and_questions(self, client: FlaskClient) -> None:
        assert error_of(client.post("/batches", data=b"not JSON"))[:2] == (400, "invalid_json")
        body = {"items": [{"audio_url": URL}], "model": "enormous"}
        assert error_of(client.post("/batches", json=body)) == (404, "model_not_found", "model")
        assert error_of(client.get("/batches?limit=many")) == (400, "invalid_option", "limit")
        assert error_of(client.get("/batches?page=2")) == (400, "unknown_field", "page")
        for method, path in (
            ("get", "/batches/batch_0"),
            ("get", "/batches/batch_0/results"),
            ("post", "/batches/batch_0/cancel"),
            ("delete", "/batches/batch_0"),
            ("get", "/batches?after=batch_0"),
        ):
            assert error_of(getattr(client, method)(path)) == (404, "batch_not_found", "batch_id")

    def test_too_many_items_are_refused(self, app_of: Callable[..., Flask]) -> None:
        client = app_of(batch_max_items=2).test_client()
        items = [{"audio_url": URL}] * 3
        assert error_of(client.post("/batches", json={"items": items})) == (413, "too_many_items", "items")
        assert client.post("/batches", json={"items": items[:2]}).status_code == 202

    def test_what_has_no_room_is_refused(self, app_of: Callable[..., Flask]) -> None:
        app = app_of(batch_max_queued=1, batch_max_bytes=200_000)
        client = app.test_client()
        answer = client.post("/batches", json={"items": [{"audio_url": URL}] * 2})
        assert error_of(answer)[:2] == (429, "overloaded")
        assert int(answer.headers["Retry-After"]) == 60
        answer = client.post("/batches", data={"file": (io.BytesIO(bytes(200_000)), "a.wav")})
        assert error_of(answer)[:2] == (507, "batches_full")
        assert uploads(app) == []
        finished(client, client.post("/batches", data={"file": upload(DOCTOR)}).headers["Location"])

    def test_a_form_may_have_more_files_than_that_of_one_request(self, client: FlaskClient) -> None:
        data = {"file": [(io.BytesIO(b"x"), f"{number}.wav") for number in range(250)]}
        answer = client.post("/batches", data=data)
        assert answer.get_json()["total"] == 250
        client.delete(answer.headers["Location"])

    def test_a_model_is_described_as_elsewhere(self) -> None:
        for model in (batch_intake.BatchRequest, batch_intake.BatchForm):
            assert model.model_fields["model"].description == Parameters.model_fields["model"].description

    def test_the_options_are_those_of_transcribe_but_for_a_few(self) -> None:
        left_out = {"threads", "background", "cancel", "progress", "max_wait_seconds"}
        assert set(batch_intake.BatchOptions.model_fields) == set(TranscribeOptions.model_fields) - left_out


class TestEnhancing:
    @pytest.fixture
    def app_with(self, app_of: Callable[..., Flask]) -> Callable[..., Flask]:
        """Make an application that has a language model at this address."""
        return lambda url, **settings: app_of(llm_base_url=url, llm_model="gemma3", url_allow="127.0.0.1", **settings)

    def test_each_item_is_cleaned_up_as_it_asks(self, app_with: Callable[..., Flask], files: str) -> None:
        with chat_server(correct) as chat:
            client = app_with(chat.base_url).test_client()
            url = f"{files}/{DOCTOR}"
            items = [{"audio_url": url, "enhance": mode} for mode in ("auto", "never", "always")]
            answer = client.post("/batches", json={"items": [*items, {"audio_url": url}], "enhance": "never"})
            results = [item["result"] for item in finished(client, answer.headers["Location"])["items"]]
            assert [result["text"] for result in results] == [text_of(DOCTOR)] * 4
            assert len(chat.calls) == 2
            alone = client.post("/transcribe", data={"file": upload(DOCTOR)}).get_json()
            texts = client.get(f"{answer.headers['Location']}/results?response_format=text").text.splitlines()
        done = {"status": "enhanced", "text": CORRECTED, "reason": None, "model": "gemma3"}
        assert [result.get("enhancement") for result in results] == [done, None, done, None]
        assert results[0]["timings"]["enhance"] > 0
        assert list(results[0]) == [name for name in alone if name != "id"]
        assert {json.loads(line)["result"] for line in texts} == {f"{text_of(DOCTOR)}\n"}
        assert value(client, "whisper_enhancements_total", status="enhanced") == 3

    def test_what_says_nothing_has_the_server_s_default(self, app_with: Callable[..., Flask]) -> None:
        with chat_server(correct) as chat:
            client = app_with(chat.base_url).test_client()
            answers = [
                client.post("/batches", data={"file": upload(DOCTOR), **more}) for more in ({}, {"enhance": "never"})
            ]
            told = [finished(client, answer.headers["Location"])["items"][0]["result"] for answer in answers]
        assert [result.get("enhancement", {}).get("text") for result in told] == [CORRECTED, None]

    @pytest.mark.parametrize(
        ("answer", "timeout_seconds", "reason"),
        [
            (lambda call: call.send(b"no", 500), 60, "answered 500"),
            (lambda call: call.reply("Something else that nobody said."), 60, "refused"),
            (stall, 0.5, "not done within"),
        ],
    )
    def test_a_language_model_that_fails_costs_no_transcript(
        self, app_with: Callable[..., Flask], answer: Any, timeout_seconds: float, reason: str
    ) -> None:
        with chat_server(answer) as chat:
            client = app_with(chat.base_url, llm_timeout=timeout_seconds).test_client()
            sent = client.post("/batches", data={"file": upload(DOCTOR), "enhance": "always"})
            (item,) = finished(client, sent.headers["Location"])["items"]
        assert (item["state"], item["result"]["text"]) == ("done", text_of(DOCTOR))
        enhancement = item["result"]["enhancement"]
        assert (enhancement["status"], enhancement["text"]) == ("failed", None)
        assert reason in enhancement["reason"]

    def test_the_deadline_of_an_item_counts_for_its_clean_up(
        self, app_with: Callable[..., Flask], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given: list[float | None] = []

        def enhance(_self: Enhancer, _text: str, _language: str, _cancel: Any, seconds: float | None) -> Enhancement:
            given.append(seconds)
            return Enhancement("failed")

        # What an enhancer does with it is its own tests' concern.
        monkeypatch.setattr(Enhancer, "enhance", enhance)
        client = app_with("http://127.0.0.1:9/v1").test_client()
        for fields in ({"timeout_seconds": "500"}, {}):
            finished(client, client.post("/batches", data={"file": upload(DOCTOR), **fields}).headers["Location"])
        assert given[0]
        assert 0 < given[0] < 500
        assert given[1] is None

    def test_a_stop_during_a_clean_up_costs_only_that(self, app_with: Callable[..., Flask]) -> None:
        with chat_server(stall) as chat:
            first = app_with(chat.base_url)
            location = first.test_client().post("/batches", data={"file": upload(DOCTOR)}).headers["Location"]
            assert chat.called.wait(60)
            assert "result" not in first.test_client().get(location).get_json()["items"][0]
            first.extensions["whisper_service"].stop(0)
        with chat_server(correct) as chat:
            client = app_with(chat.base_url).test_client()
            (item,) = finished(client, location)["items"]
        assert (item["result"]["text"], item["result"]["enhancement"]["text"]) == (text_of(DOCTOR), CORRECTED)
        assert value(client, "whisper_audio_seconds_total") == 0  # it was not transcribed again

    def test_a_server_that_has_no_language_model_any_more_says_so(self, app_with: Callable[..., Flask]) -> None:
        with chat_server(stall) as chat:
            first = app_with(chat.base_url)
            data = {"file": upload(DOCTOR), "enhance": "always"}
            location = first.test_client().post("/batches", data=data).headers["Location"]
            assert chat.called.wait(60)
            first.extensions["whisper_service"].stop(0)
        client = app_with(None).test_client()
        (item,) = finished(client, location)["items"]
        assert item["result"]["text"] == text_of(DOCTOR)
        assert item["result"]["enhancement"]["reason"] == "this server has no language model"


class TestIdempotency:
    def test_the_same_request_again_is_the_same_batch(self, client: FlaskClient, app: Flask) -> None:
        def send(name: str, key: str = "one") -> Any:
            return client.post("/batches", data={"file": upload(name)}, headers={"Idempotency-Key": key})

        first, again = send(DOCTOR), send(DOCTOR)
        assert (first.status_code, again.status_code) == (202, 200)
        assert first.get_json()["id"] == again.get_json()["id"]
        assert error_of(send(GERMAN))[:2] == (409, "idempotency_conflict")
        other = send(GERMAN, "two")
        assert other.status_code == 202
        assert error_of(send(GERMAN, "two words")) == (400, "invalid_option", "Idempotency-Key")
        for answer in (first, other):
            finished(client, answer.headers["Location"])
        assert uploads(app) == []


class TestKeys:
    BODY: ClassVar = {"items": [{"audio_url": "http://127.0.0.2/"}]}

    @pytest.fixture
    def client(self, app_of: Callable[..., Flask]) -> FlaskClient:
        return app_of(api_keys="anna,bert", admin_keys="root").test_client()

    @staticmethod
    def bearing(key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"}

    def ids(self, client: FlaskClient, key: str) -> list[str]:
        return [batch["id"] for batch in client.get("/batches", headers=self.bearing(key)).get_json()["batches"]]

    def send(self, client: FlaskClient, key: str) -> Any:
        return client.post("/batches", json=self.BODY, headers={**self.bearing(key), "Idempotency-Key": "mine"})

    def test_a_batch_is_there_for_its_own_key_and_the_admin_s(self, client: FlaskClient, place: Path) -> None:
        own, other = (self.send(client, key).get_json()["id"] for key in ("anna", "bert"))
        assert self.send(client, "anna").get_json()["id"] == own != other
        assert (self.ids(client, "anna"), self.ids(client, "bert"), self.ids(client, "root")) == (
            [own],
            [other],
            [other, own],
        )
        calls = (
            ("get", f"/batches/{own}"),
            ("get", f"/batches/{own}/results"),
            ("get", f"/batches?after={own}"),
            ("post", f"/batches/{own}/cancel"),
            ("delete", f"/batches/{own}"),
        )
        nobody = error_of(client.get("/batches/batch_0", headers=self.bearing("bert")))
        for method, path in calls:
            assert error_of(getattr(client, method)(path, headers=self.bearing("bert"))) == nobody
        for key in ("anna", "root"):
            for method, path in calls[:-1]:
                answer = getattr(client, method)(path, headers=self.bearing(key), buffered=True)
                assert answer.status_code == 200
        assert client.delete(calls[-1][1], headers=self.bearing("root")).status_code == 200
        assert (self.ids(client, "anna"), self.ids(client, "root")) == ([], [other])
        assert self.send(client, "root").status_code == 401
        written = b"".join(path.read_bytes() for path in place.iterdir() if path.is_file())
        assert hashlib.sha256(b"anna").hexdigest().encode() in written
        assert not re.search(rb"\b(anna|bert|root)\b", written)

    def test_keys_may_come_and_go(self, client: FlaskClient, app_of: Callable[..., Flask]) -> None:
        def restarted(before: FlaskClient, **settings: str) -> FlaskClient:
            before.application.extensions["whisper_service"].stop(0)
            return app_of(**settings).test_client()

        first = self.send(client, "anna").get_json()["id"]
        client = restarted(client)
        second = self.send(client, "whatever").get_json()["id"]
        assert self.ids(client, "whatever") == [second, first]
        client = restarted(client, api_keys="bert,carl", admin_keys="root")
        assert (self.ids(client, "bert"), self.ids(client, "root")) == ([second], [second, first])

    def test_the_document_says_which_keys_a_call_takes(self) -> None:
        both: list[dict[str, list[str]]] = [{"key": []}, {"admin_key": []}]
        paths = openapi.document(bare_app(api_keys="anna", admin_keys="root"))["paths"]
        assert paths["/batches"]["get"]["security"] == paths["/batches/{batch_id}/cancel"]["post"]["security"] == both
        for settings in ({"api_keys": "anna"}, {"admin_keys": "root"}):
            assert "security" not in openapi.document(bare_app(**settings))["paths"]["/batches"]["get"]
        assert "security" not in paths["/batches"]["post"]


class TestEnds:
    def test_a_cancelled_batch_stops_what_runs(self, client: FlaskClient, app: Flask) -> None:
        data = {"file": [upload(DOCTOR), *(upload(LONG) for _ in range(4))], "chunking": "sequential"}
        location = client.post("/batches", data=data).headers["Location"]
        wait_until(lambda: client.get(location).get_json()["counts"]["running"] == 2, "two run")
        wait_until(lambda: client.get(location).get_json()["items"][0]["state"] == "done", "the clip is done")
        told = client.post(f"{location}/cancel").get_json()
        assert (told["state"], told["counts"]["cancelled"], told["counts"]["done"]) == ("cancelled", 4, 1)
        adapter = app.extensions["whisper_service"].adapter
        wait_until(lambda: adapter.workload().running == 0, "nothing runs")
        assert client.post(f"{location}/cancel").get_json() == {**told}
        assert len(client.get(f"{location}/results").text.splitlines()) == 1
        assert uploads(app) == []
        assert client.delete(location).get_json()["deleted"]
        assert client.get(location).status_code == 404

    def test_a_stop_gives_back_what_runs_and_the_next_server_ends_it(self, app_of: Callable[..., Flask]) -> None:
        first = app_of(concurrency=1)
        data = {"file": [upload(LONG)], **BEGINNING}
        location = first.test_client().post("/batches", data=data).headers["Location"]
        wait_until(lambda: first.test_client().get(location).get_json()["counts"]["running"], "it runs")
        service = first.extensions["whisper_service"]
        service.stop(0)
        assert first.test_client().get(location).status_code == 503
        second = app_of(concurrency=1)  # without a request
        wait_until(lambda: second.extensions["whisper_service"].adapter.workload().running, "it runs again")
        told = finished(second.test_client(), location)
        assert told["items"][0]["result"]["text"].startswith(CODE)
        assert told["items"][0]["result"]["complete"]

    def test_an_item_that_ends_the_process_again_and_again_is_given_up(
        self, app_of: Callable[..., Flask], place: Path
    ) -> None:
        app = bare_app(batches=str(place))
        queue = app.extensions["whisper_batches"].queue
        kept = queue.keep(io.BytesIO(b"poison"))
        settings = json.dumps({"model": None, "response_format": "json"})
        batch_id, _ = queue.add(NewBatch([NewItem("a", "{}", upload=kept)], settings))
        queue.close()
        for _ in range(3):
            dead = SqliteQueue(place, alone=True)
            assert dead.claim("dead", 60.0)
            dead.close()
        told = finished(app_of().test_client(), f"/batches/{batch_id}")
        assert told["items"][0]["error"]["code"] == "engine_failed"
        assert "3 times" in told["items"][0]["error"]["message"]

    def test_a_crash_of_the_model_s_process_costs_only_the_item_that_makes_it(
        self, app_of: Callable[..., Flask], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(runner, "CRASH_SECONDS", 0.0)
        innocent, poison = 0, 1
        data = {"file": [upload(LONG), upload(LONG), upload(DOCTOR)], "chunking": "sequential"}

        def crash(app: Flask, *running: int) -> None:
            """End the model's process as soon as these items run, and no others."""
            engine = app.extensions["whisper_service"].adapter
            client = app.test_client()

            def run() -> bool:
                states = [item["state"] for item in client.get(location).get_json()["items"]]
                in_it = [index for index, state in enumerate(states) if state == "running"]
                return in_it == list(running) and engine.workload().running == len(running)

            wait_until(run, f"{running} run")
            before = engine.config.process_id
            os.kill(before, signal.SIGSEGV)
            wait_until(lambda: engine.config.process_id != before, "another process has the model")

        first = app_of(isolation="process")
        location = first.test_client().post("/batches", data=data).headers["Location"]
        crash(first, innocent, poison)
        crash(first, poison)
        first.extensions["whisper_service"].stop(0)
        second = app_of(isolation="process")
        crash(second, poison)
        told = finished(second.test_client(), location)
        assert [item["state"] for item in told["items"]] == ["done", "failed", "done"]
        assert told["items"][innocent]["result"]["text"].startswith(CODE)
        assert told["items"][poison]["error"]["code"] == "engine_failed"
        assert "ended 3 times while this item ran" in told["items"][poison]["error"]["message"]


class TestPlace:
    def test_where_they_are_off_only_they_are(self, make_app: MakeApp) -> None:
        client = make_app(batches="off").test_client()
        body = {"items": [{"audio_url": URL}]}
        for answer in (client.get("/batches"), client.post("/batches", json=body), client.delete("/batches/x")):
            assert error_of(answer)[:2] == (503, "batches_unavailable")
        assert "WHISPER_BATCHES" in answer.get_json()["error"]["message"]
        assert client.post("/transcribe", data={"file": upload(DOCTOR)}).status_code == 200

    def test_a_place_that_cannot_be_used_is_tried_again(self, app_of: Callable[..., Flask], place: Path) -> None:
        place.write_bytes(b"")  # a file
        client = app_of().test_client()
        data: dict[str, Callable[[], Any]] = {"file": lambda: upload(DOCTOR)}
        answer = client.post("/batches", data={name: make() for name, make in data.items()})
        assert error_of(answer)[:2] == (503, "batches_unavailable")
        assert client.get("/ready").status_code == 200
        assert client.get("/metrics").status_code == 200
        place.unlink()
        answer = client.post("/batches", data={name: make() for name, make in data.items()})
        finished(client, answer.headers["Location"])

    def test_nothing_is_made_before_it_is_needed(self, app_of: Callable[..., Flask], place: Path) -> None:
        client = app_of().test_client()
        client.post("/transcribe", data={"file": upload(DOCTOR)})
        assert not place.exists()

    def test_without_a_model_nothing_is_taken(self, place: Path) -> None:
        client = bare_app(batches=str(place)).test_client()
        assert error_of(client.post("/batches", json={"items": [{"audio_url": URL}]}))[:2] == (503, "unavailable")
        assert client.get("/batches").get_json() == {"batches": [], "next_after": None}


class TestPriority:
    def test_items_run_behind_all_requests_and_wait_as_long_as_they_must(
        self, app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        adapter, seen = app.extensions["whisper_service"].adapter, list[TranscribeOptions]()
        transcribe = adapter.transcribe

        def spy(source: Any, options: TranscribeOptions) -> Any:
            seen.append(options)
            return transcribe(source, options)

        monkeypatch.setattr(adapter, "transcribe", spy)
        finished(client, client.post("/batches", data={"file": upload(DOCTOR)}).headers["Location"])
        (options,) = seen
        assert (options.background, options.max_wait_seconds, options.timeout_seconds) == (True, None, None)

    def test_nothing_is_begun_while_requests_have_all_slots(self, app_of: Callable[..., Flask]) -> None:
        app = app_of(concurrency=1)
        client = app.test_client()
        with busy(app.extensions["whisper_service"].adapter):
            location = client.post("/batches", data={"file": upload(DOCTOR)}).headers["Location"]
            seen = threading.Event()
            batches = app.extensions["whisper_batches"]
            asked = batches._may_begin

            def spy(settings: str) -> bool:
                seen.set()
                return bool(asked(settings))

            batches._runner._may_begin = spy
            assert seen.wait(60)
            assert client.get(location).get_json()["state"] == "queued"
        finished(client, location)

    @pytest.mark.parametrize(("engaged", "free"), [(None, "tiny"), ("tiny", None)])
    def test_only_the_slots_of_the_model_that_an_item_names_count(
        self, app_of: Callable[..., Flask], tmp_path: Path, engaged: str | None, free: str | None
    ) -> None:
        put_model(tmp_path, "tiny")
        app = app_of(concurrency=1, model_root=tmp_path)
        client = app.test_client()

        def send(model: str | None) -> str:
            fields = {"model": model} if model else {}
            return str(client.post("/batches", data={"file": upload(DOCTOR), **fields}).headers["Location"])

        with app.extensions["whisper_service"].lease(engaged) as engine, busy(engine):
            waiting = send(engaged)
            finished(client, send(free))
            assert client.get(waiting).get_json()["state"] == "queued"
        finished(client, waiting)

    def test_nothing_is_begun_while_a_request_waits_for_any_model(
        self, app_of: Callable[..., Flask], tmp_path: Path
    ) -> None:
        put_model(tmp_path, "tiny")
        app = app_of(concurrency=1, model_root=tmp_path)
        adapter, settings = app.extensions["whisper_service"].adapter, json.dumps({"model": "tiny"})
        may_begin = app.extensions["whisper_batches"]._may_begin
        with busy(adapter):
            assert may_begin(settings)
            with adapter.stream(assets.SAMPLES / DOCTOR, cache=False):
                assert adapter.workload().waiting == 1
                assert not may_begin(settings)
        assert may_begin(settings)

    def test_a_request_has_the_memory_that_an_item_s_model_has(
        self, app_of: Callable[..., Flask], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pool, "RECENT_SECONDS", 0.0)
        model_bytes = put_model(tmp_path, "tiny").stat().st_size
        client = app_of(concurrency=1, model_root=tmp_path, pinned="base").test_client()
        models = client.application.extensions["whisper_service"].pool
        models._resident_bytes = lambda: 0  # so that a model takes what its file does
        models.reload("micro")
        models.unload("micro")
        models.budget_bytes = model_bytes * 3 // 2
        models.load("tiny")
        runs = threading.Event()

        def run_until_revoked(_source: Any, options: TranscribeOptions) -> Any:
            revoked = threading.Event()
            assert options.cancel
            options.cancel.add_listener(revoked.set)
            runs.set()
            assert revoked.wait(60)
            raise TranscriptionCancelled("revoked")

        monkeypatch.setattr(models.engine("tiny"), "transcribe", run_until_revoked)
        location = client.post("/batches", data={"file": upload(GERMAN), "model": "tiny"}).headers["Location"]
        assert runs.wait(60)
        assert client.post("/transcribe", data={"file": upload(DOCTOR)}).get_json()["text"] == text_of(DOCTOR)
        assert finished(client, location)["items"][0]["result"]["text"] == text_of(GERMAN)
        assert list(models.loaded()) == ["tiny"]


def test_a_server_that_is_killed_loses_nothing_and_does_nothing_twice(place: Path) -> None:
    names = (DOCTOR, LONG, GERMAN)
    location, done = "", list[str]()

    def told(server: RunningServer) -> Any:
        return server.get(location).json()

    def runs_the_long_one(server: RunningServer) -> bool:
        return bool(told(server)["items"][1]["state"] == "running")

    with running_server(batches=place, concurrency=1) as server:
        data = {name: [value] for name, value in BEGINNING.items()}
        files = [("file", (name, (assets.SAMPLES / name).read_bytes())) for name in names]
        location = server.post("/batches", files=files, data=data).headers["Location"]
        wait_until(lambda: runs_the_long_one(server), "it is in the middle")
        (worker,) = server.worker_pids
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: server.worker_pids not in ([], [worker]), "there is another worker")
        server.wait_until_ready()
        wait_until(lambda: runs_the_long_one(server), "it runs again, last")
        assert [item["state"] for item in told(server)["items"]] == ["done", "running", "done"]
        (worker,) = server.worker_pids
        os.kill(server.pid, signal.SIGKILL)
        os.kill(worker, signal.SIGKILL)
        server.wait()
        done += done_items(server)
    with running_server(batches=place, concurrency=1) as server:
        wait_until(lambda: told(server)["state"] == "done", "the batch is done")
        lines = [json.loads(line) for line in server.get(f"{location}/results").text.splitlines()]
        done += done_items(server)
    assert [line["index"] for line in lines] == [0, 1, 2]
    assert [line["result"]["text"] for line in lines[::2]] == [text_of(DOCTOR), text_of(GERMAN)]
    assert lines[1]["result"]["text"].startswith(CODE)
    assert sorted(done) == ["0", "1", "2"]


def done_items(server: RunningServer) -> list[str]:
    """Return the items that a server has worked on to the end, as it logs them."""
    return re.findall(r"an item of a batch is done.* request_id=\S+/(\d+)", server.log)
