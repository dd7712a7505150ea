"""Results that are kept: how long and how many, what is asked of them later, and what becomes of that."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.chat_server import Answer, Call, ChatServer, chat_server, stall
from tests.web.busy_engine import WAIT_SECONDS
from tests.web.conftest import MakeApp, bare_app
from tests.web.running_server import running_server, wait_until
from tests.web.test_metrics import value
from tests.web.test_running import AUDIO, TEXT
from tests.web.test_transcribe import error_of, events_of, post
from whisperlib import formats
from whisperlib.enhance import Enhancement
from whisperlib.results import Segment, Transcription, Word
from whisperlib.web import enhancing, kept, schemas
from whisperlib.web.errors import ApiError
from whisperlib.web.kept import KeptResults
from whisperlib.web.running import Outcome
from whisperlib.web.service import Service

CORRECTED = TEXT.replace("five thirty-six", "5:36")
GOOD = Enhancement("enhanced", CORRECTED, model="gemma3")
FAILED = Enhancement("failed", reason="down", model="gemma3")


def outcome(text: str = TEXT, model: str = "medium") -> Outcome:
    word = Word("The", 0.1, 0.2, 0.9)
    segment = Segment(0, 0.12, 5.74, text, (1, 2), avg_logprob=math.inf, words=(word,))
    return Outcome(Transcription(text, (segment,), "en", 6.343, model=model), 0.0, 0.5)


class Clock:
    """A timer that a test sets."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def texts(results: KeptResults, *ids: str | None) -> list[str | None]:
    """Return the texts under these ids, None for what is not kept."""

    def text_of(wanted_id: str) -> str | None:
        try:
            return results.get(wanted_id).outcome.result.text
        except ApiError:
            return None

    return [text_of(str(one)) for one in ids]


class TestKeptResults:
    def test_a_result_is_there_as_it_was(self) -> None:
        results, given = KeptResults(10, 60), outcome()
        kept_as = results.add(given, words=True, enhancement=GOOD)
        assert kept_as
        found = results.get(kept_as)
        assert (found.id, found.outcome, found.words, found.enhancement) == (kept_as, given, True, GOOD)

    def test_no_two_ids_are_alike(self) -> None:
        results = KeptResults(100, 60)
        ids = [results.add(outcome()) for _ in range(100)]
        assert len(set(ids)) == len(results) == 100
        assert all(re.fullmatch("[0-9a-f]{32}", str(one)) for one in ids)

    def test_time_is_counted_from_its_beginning_whatever_happens_to_it(self, clock: Clock) -> None:
        results = KeptResults(10, 60, timer=clock)
        kept_as = results.add(outcome())
        assert kept_as
        clock.seconds = 59
        results.enhance(kept_as, GOOD)
        assert results.get(kept_as).enhancement == GOOD
        clock.seconds = 60
        with pytest.raises(ApiError, match=r"kept for 60 s \(WHISPER_KEEP_RESULTS_SECONDS\), 10 at most"):
            results.get(kept_as)
        results.enhance(kept_as, GOOD)
        assert len(results) == 0

    def test_who_was_asked_for_stays_longest(self, clock: Clock) -> None:
        results = KeptResults(2, 60, timer=clock)
        first, second = (results.add(outcome(text)) for text in "ab")
        assert texts(results, first) == ["a"]
        third = results.add(outcome("c"))
        assert texts(results, first, second, third) == ["a", None, "c"]
        clock.seconds = 60
        fourth = results.add(outcome("d"))
        assert texts(results, first, third, fourth) == [None, None, "d"]

    def test_their_bytes_are_bounded(self) -> None:
        results = KeptResults(100, 60, max_bytes=6000)
        ids = [results.add(outcome(letter * 2000)) for letter in "abc"]
        assert texts(results, *ids) == [None, "b" * 2000, "c" * 2000]
        assert results.add(outcome("d" * 6000)) is None
        assert len(results) == 2

    @pytest.mark.parametrize("limits", [(0, 60), (10, 0)])
    def test_nothing_is_kept_where_that_is_off(self, limits: tuple[int, float]) -> None:
        results = KeptResults(*limits)
        assert results.add(outcome()) is None
        with pytest.raises(ApiError, match="keeps none: WHISPER_KEEP_RESULTS_SECONDS"):
            results.get("")

    def test_what_is_forgotten_is_gone(self) -> None:
        results = KeptResults(10, 60)
        kept_as = str(results.add(outcome()))
        results.forget(kept_as)
        assert texts(results, kept_as) == [None]
        with pytest.raises(ApiError, match="no result with this id"):
            results.forget(kept_as)

    def test_a_clean_up_that_failed_replaces_none_that_did_not(self) -> None:
        results = KeptResults(10, 60)
        kept_as = str(results.add(outcome(), enhancement=FAILED))
        results.enhance(kept_as, GOOD)
        results.enhance(kept_as, FAILED)
        assert results.get(kept_as).enhancement == GOOD


@pytest.fixture(scope="module")
def loaded() -> Iterator[FlaskClient]:
    """An application whose model is loaded, and that has a language model."""
    with chat_server(correct) as chat:
        app = bare_app(threads=1, concurrency=1, shutdown_seconds=0, llm_base_url=chat.base_url, llm_model="gemma3")
        service: Service = app.extensions["whisper_service"]
        service.start()
        yield app.test_client()
        service.stop()


def correct(call: Call) -> None:
    call.reply(call.transcript.replace("five thirty-six", "5:36"))


def again(client: FlaskClient, answer: dict[str, Any], **query: str) -> TestResponse:
    return client.get(f"/transcriptions/{answer['id']}", query_string=query)


class TestAnswers:
    @pytest.mark.parametrize(
        "query",
        [{"enhance": "never"}, {"response_format": "verbose_json"}, {"word_timestamps": "true", "enhance": "never"}],
    )
    def test_an_answer_is_given_again(self, loaded: FlaskClient, query: dict[str, str]) -> None:
        answer = post(loaded, **query).get_json()
        response_format = query.get("response_format", "json")
        response = again(loaded, answer, response_format=response_format)
        assert response.get_json() == answer
        assert list(response.get_json()) == list(answer)
        assert response.headers["Cache-Control"] == "no-store"

    def test_it_comes_in_every_format(self, loaded: FlaskClient) -> None:
        answer = post(loaded, enhance="never").get_json()
        for response_format in set(formats.FORMATS) - set(schemas.JSON_FORMATS):
            response = again(loaded, answer, response_format=response_format)
            expected = post(loaded, response_format=response_format)
            assert (response.text, response.content_type) == (expected.text, expected.content_type)

    def test_the_result_of_a_stream_is_kept_with_what_follows(self, loaded: FlaskClient) -> None:
        events = events_of(post(loaded, stream="true", word_timestamps="true"))
        result = dict(events)["result"]
        schemas.Answer.model_validate(result)
        told = again(loaded, result).get_json()
        seconds = events[-1][1].pop("seconds")
        assert told.pop("enhancement") == events[-1][1]
        assert told["timings"].pop("enhance") == seconds
        assert {**told, "timings": None} == {**result, "timings": None}

    def test_what_has_no_id_is_not_kept(self, loaded: FlaskClient) -> None:
        before = value(loaded, "whisper_kept_results")
        assert post(loaded, response_format="srt").status_code == 200
        for path in ("/v1/audio/transcriptions", "/inference"):
            form = {"file": (io.BytesIO(AUDIO), "a.flac"), "response_format": "verbose_json"}
            answer = loaded.post(path, data=form)
            assert answer.status_code == 200
            assert "id" not in answer.get_json()
        assert value(loaded, "whisper_kept_results") == before
        post(loaded, enhance="never")
        assert value(loaded, "whisper_kept_results") == (before or 0) + 1

    def test_it_can_be_forgotten(self, loaded: FlaskClient) -> None:
        answer = post(loaded, enhance="never").get_json()
        path = f"/transcriptions/{answer['id']}"
        gone = loaded.delete(path)
        assert (gone.status_code, gone.data) == (204, b"")
        for response in (loaded.delete(path), loaded.get(path), loaded.post(f"{path}/enhance")):
            assert response.status_code == 404
            assert error_of(response)["code"] == "transcription_not_found"
            assert "WHISPER_KEEP_RESULTS_SECONDS" in error_of(response)["message"]

    def test_where_that_is_off_answers_have_no_id(self, make_app: MakeApp) -> None:
        client = make_app(threads=1, concurrency=1, keep_results_seconds=0).test_client()
        assert "id" not in post(client).get_json()
        assert "id" not in dict(events_of(post(client, stream="true")))["result"]
        assert "is 0" in error_of(client.get("/transcriptions/x"))["message"]
        assert value(client, "whisper_kept_results") == 0

    def test_a_field_that_cannot_be_used_is_named(self, loaded: FlaskClient) -> None:
        error = error_of(loaded.get("/transcriptions/x?response_format=docx"))
        assert (error["code"], error["param"]) == ("invalid_option", "response_format")
        assert error_of(loaded.get("/transcriptions/x?stream=1"))["message"].endswith("fields are response_format")


def app_with(chat: ChatServer | None = None) -> Flask:
    """An application whose model is not loaded: nothing here needs it."""
    return bare_app(**({"llm_base_url": chat.base_url, "llm_model": "gemma3"} if chat else {}))


def keep(app: Flask, **fields: Any) -> str:
    """Have it keep the result of a medium model; return its path."""
    results: KeptResults = app.extensions[kept.EXTENSION]
    return f"/transcriptions/{results.add(outcome(**fields))}"


class TestCleanUp:
    @pytest.fixture
    def chat(self) -> Iterator[ChatServer]:
        with chat_server(correct) as server:
            yield server

    @pytest.fixture
    def app(self, chat: ChatServer) -> Flask:
        return app_with(chat)

    def test_a_text_is_cleaned_up_afterwards_and_kept(self, app: Flask, client: FlaskClient) -> None:
        path = keep(app)
        answer = client.post(f"{path}/enhance").get_json()
        schemas.Enhanced.model_validate(answer)
        assert answer["timings"].pop("enhance") > 0
        enhancement = {"status": "enhanced", "text": CORRECTED, "reason": None, "model": "gemma3"}
        assert answer == {"id": path.rpartition("/")[2], "text": TEXT, "enhancement": enhancement, "timings": {}}
        told = client.get(path).get_json()
        assert (told["text"], told["enhancement"]) == (TEXT, enhancement)
        assert told["timings"]["total"] > 0.5
        assert client.get(path, query_string={"response_format": "text"}).text == f"{TEXT}\n"
        assert value(client, "whisper_enhancements_total", status="enhanced") == 1

    @pytest.mark.parametrize(
        "request_",
        [{"json": {"enhance": "auto"}}, {"query_string": {"enhance": "auto"}}, {"data": '{"enhance":"auto"}'}],
    )
    def test_auto_leaves_the_larger_models_alone(
        self, app: Flask, client: FlaskClient, chat: ChatServer, request_: dict[str, Any]
    ) -> None:
        skipped = client.post(f"{keep(app)}/enhance", **request_).get_json()["enhancement"]
        assert skipped["status"] == "skipped"
        assert "medium" in skipped["reason"]
        assert not chat.calls
        small = client.post(f"{keep(app, model='small')}/enhance", **request_).get_json()["enhancement"]
        assert small["status"] == "enhanced"

    def test_it_is_streamed(self, app: Flask, client: FlaskClient) -> None:
        path = keep(app)
        events = events_of(client.get(f"{path}/enhance-stream?enhance=always"))
        assert [name for name, _ in events] == ["enhancement.delta"] * (len(events) - 1) + ["enhancement.done"]
        assert "".join(data["text"] for _, data in events[:-1]) == CORRECTED
        done = events[-1][1]
        assert done.pop("seconds") > 0
        assert done == client.get(path).get_json()["enhancement"]
        assert done["text"] == CORRECTED

    @pytest.mark.parametrize(
        ("request_", "expected"),
        [
            ({"json": {"enhance": "never"}}, ("invalid_option", "enhance")),
            ({"json": {"enhance": 1}}, ("invalid_option", "enhance")),
            ({"json": {"language": "en"}}, ("unknown_field", "language")),
            ({"json": {"enhance": "auto"}, "query_string": {"enhance": "auto"}}, ("conflict", "enhance")),
            ({"query_string": "enhance=auto&enhance=auto"}, ("conflict", "enhance")),
            ({"data": "enhance=auto"}, ("invalid_json", None)),
            ({"data": b"\xff"}, ("not_utf8", None)),
        ],
    )
    def test_what_cannot_be_used_is_named(
        self, app: Flask, client: FlaskClient, request_: dict[str, Any], expected: tuple[str, str | None]
    ) -> None:
        response = client.post(f"{keep(app)}/enhance", **request_)
        error = error_of(response)
        assert (response.status_code, error["code"], error["param"]) == (400, *expected)

    def test_a_body_that_is_too_large_is_refused(self, app: Flask, client: FlaskClient) -> None:
        assert client.post(f"{keep(app)}/enhance", data=b" " * 70_000).status_code == 413

    def test_without_a_language_model_it_is_refused(self) -> None:
        app = app_with()
        path, client = keep(app), app.test_client()
        for response in (client.post(f"{path}/enhance"), client.get(f"{path}/enhance-stream")):
            assert response.status_code == 400
            assert error_of(response)["param"] == "enhance"
            assert "WHISPER_LLM_BASE_URL" in error_of(response)["message"]

    def test_a_language_model_that_fails_costs_no_text(self) -> None:
        def answer(call: Call) -> None:
            if len(server.calls) > 1:
                call.send(b"no", 500)
            else:
                correct(call)

        with chat_server(answer) as server:
            app = app_with(server)
            path, client = keep(app), app.test_client()
            statuses = [client.post(f"{path}/enhance").get_json()["enhancement"]["status"] for _ in range(2)]
            assert statuses == ["enhanced", "failed"]
            assert client.get(path).get_json()["enhancement"]["text"] == CORRECTED
            other = keep(app)
            done = events_of(client.get(f"{other}/enhance-stream"))[-1][1]
            assert (done["status"], done["text"]) == ("failed", None)
            assert client.get(other).get_json()["enhancement"]["status"] == "failed"

    def test_a_stream_that_is_closed_hangs_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(enhancing, "HEARTBEAT_SECONDS", 0.01)
        with chat_server(stall) as server:
            app = app_with(server)
            service: Service = app.extensions["whisper_service"]
            response = app.test_client().get(f"{keep(app)}/enhance-stream", buffered=False)
            assert b": keep-alive\n\n" in response.iter_encoded()
            assert server.called.wait(WAIT_SECONDS)
            assert service.in_flight == 1
            response.close()
            assert server.hung_up.wait(WAIT_SECONDS)
            assert service.in_flight == 0

    def test_a_server_that_stops_lets_nobody_in(self, app: Flask, client: FlaskClient) -> None:
        path = keep(app)
        service: Service = app.extensions["whisper_service"]
        service.stop(0)
        assert client.post(f"{path}/enhance").status_code == 503
        assert client.get(f"{path}/enhance-stream").status_code == 503
        assert client.get(path).get_json()["text"] == TEXT


def test_a_client_that_hangs_up_ends_the_clean_up() -> None:
    answers: dict[bool, Answer] = {False: correct, True: stall}

    def answer(call: Call) -> None:
        answers[bool(call.body.get("stream"))](call)

    with chat_server(answer) as chat, running_server(llm_base_url=chat.base_url, llm_model="gemma3") as server:
        kept_as = server.post("/transcribe?enhance=never", data=AUDIO).json()["id"]
        with server.connect() as connection:
            head = f"GET /transcriptions/{kept_as}/enhance-stream HTTP/1.1\r\nHost: localhost\r\n\r\n"
            connection.sendall(head.encode())
            wait_until(lambda: any(call.body.get("stream") for call in chat.calls), "the clean-up has begun")
        line = r"path=/transcriptions/<transcription_id>/enhance-stream status=499 .*enhancement=failed"
        wait_until(lambda: re.search(line, server.log), "it has ended, and is in the log")
        assert kept_as not in server.log
        answer_of_another = server.post(f"/transcriptions/{kept_as}/enhance").json()
        assert answer_of_another["enhancement"]["text"] == CORRECTED
