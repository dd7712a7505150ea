"""The service with a cache: what answers say of it, and what it spares."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.web.busy_engine import busy
from tests.web.conftest import MakeApp, bare_app
from tests.web.running_server import running_server
from tests.web.test_metrics import value
from tests.web.test_running import AUDIO, TEXT
from whisperlib.web.service import Service

HEADER = "X-Whisper-Cache"


@pytest.fixture
def cached(make_app: MakeApp, tmp_path: Path) -> FlaskClient:
    return make_app(cache=str(tmp_path / "kept"), concurrency=1, max_wait_seconds=0).test_client()


@pytest.fixture
def user_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The user's cache directory, which is not there yet; no setting says where results are kept."""
    monkeypatch.delenv("WHISPER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    return tmp_path / "user"


def post(client: FlaskClient, path: str = "/transcribe", **fields: Any) -> TestResponse:
    return client.post(path, data={"file": (io.BytesIO(AUDIO), "a.flac"), **fields}, buffered=True)


def told(answer: TestResponse) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(answer.text)
    return fields


def test_an_answer_says_whether_it_was_there(cached: FlaskClient) -> None:
    first, second, without = post(cached), post(cached), post(cached, cache="false")
    assert [answer.headers[HEADER] for answer in (first, second, without)] == ["miss", "hit", "off"]
    assert [told(answer).get("cached") for answer in (first, second, without)] == [False, True, None]
    for answer in (second, without):
        assert told(answer)["segments"] == told(first)["segments"]
    assert told(second)["timings"]["inference"] == told(second)["timings"]["queue"] == 0
    assert told(second)["timings"]["total"] > 0


def test_without_a_cache_an_answer_is_as_ever(client: FlaskClient) -> None:
    for _ in range(2):
        answer = post(client)
        assert answer.headers[HEADER] == "off"
        assert list(told(answer)) == ["id", "text", "language", "duration", "segments", "model", "complete", "timings"]


class TestDefault:
    @pytest.mark.parametrize("isolation", ["none", "process"])
    def test_another_server_finds_what_one_has_kept(self, make_app: MakeApp, user_cache: Path, isolation: str) -> None:
        place = user_cache / "whisperlib" / "results"
        client = make_app(isolation=isolation).test_client()
        assert client.get("/health").get_json()["cache"]["place"] == str(place)
        assert post(client, cache="false").headers[HEADER] == "off"
        assert not list(place.iterdir())
        first, second = post(client), post(make_app(isolation=isolation).test_client())
        assert [answer.headers[HEADER] for answer in (first, second)] == ["miss", "hit"]
        assert told(second)["segments"] == told(first)["segments"]
        assert told(second)["cached"] is True
        (file,) = place.glob("*/*")
        assert (place.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)

    def test_it_can_be_switched_off(self, make_app: MakeApp, user_cache: Path) -> None:
        client = make_app(cache="off").test_client()
        assert [post(client).headers[HEADER] for _ in range(2)] == ["off", "off"]
        assert client.get("/health").get_json()["cache"]["place"] is None
        assert not list(user_cache.rglob("results"))

    def test_a_place_that_cannot_be_written_stops_no_server(
        self, make_app: MakeApp, user_cache: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        user_cache.write_text("in the way", encoding="utf-8")
        with caplog.at_level(logging.WARNING, "whisperlib.cache"):
            client = make_app().test_client()
            assert [post(client).headers[HEADER] for _ in range(2)] == ["off", "off"]
        assert [record.levelname for record in caplog.records if record.name.startswith("whisperlib.cache")] == [
            "WARNING"
        ]
        assert client.get("/health").get_json()["cache"]["place"] is None

    def test_a_started_server_keeps_results_and_says_so_once(self, tmp_path: Path) -> None:
        with running_server(cache="", environment={"XDG_CACHE_HOME": str(tmp_path)}) as server:
            headers = [server.post("/transcribe", data=AUDIO).headers for _ in range(2)]
            assert [header[HEADER] for header in headers] == ["miss", "hit"]
            assert server.log.count(f"results are kept in {tmp_path / 'whisperlib' / 'results'}") == 1


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/inference"])
def test_the_other_apis_have_the_header_and_share_the_results(cached: FlaskClient, path: str) -> None:
    assert post(cached).headers[HEADER] == "miss"
    answer = post(cached, path)
    assert answer.headers[HEADER] == "hit"
    assert told(answer)["text"] == TEXT
    assert "cached" not in told(answer)
    translated = post(cached, "/v1/audio/translations")
    assert translated.headers[HEADER] == "miss"


@pytest.mark.parametrize("path", ["/transcribe", "/v1/audio/transcriptions"])
def test_a_hit_is_streamed_with_all_its_segments(cached: FlaskClient, path: str) -> None:
    first, second = (post(cached, path, stream="true") for _ in range(2))
    assert (first.headers[HEADER], second.headers[HEADER]) == ("miss", "hit")
    named = [line for line in second.text.splitlines() if line.startswith("data: {") and TEXT in line]
    assert len(named) >= 2
    if path == "/transcribe":
        assert json.loads(named[-1].removeprefix("data: "))["cached"] is True


def test_a_full_server_still_answers_what_it_knows(cached: FlaskClient) -> None:
    service: Service = cached.application.extensions["whisper_service"]
    assert post(cached).status_code == 200
    with busy(service.adapter):
        assert post(cached).headers[HEADER] == "hit"
        assert post(cached, language="en").status_code == 429


def test_health_tells_where_results_are_and_how_full_it_is(cached: FlaskClient, tmp_path: Path) -> None:
    def told_of_it() -> dict[str, Any]:
        return dict(cached.get("/health").get_json()["cache"])

    before = told_of_it()
    assert (before["place"], before["size_bytes"]) == (str(tmp_path / "kept" / "results"), None)
    assert before["max_bytes"] == 268_435_456
    post(cached)
    assert told_of_it()["size_bytes"] == value(cached, "whisper_cache_size_bytes")


def test_health_tells_no_password() -> None:
    client = bare_app(cache="redis://:hush@127.0.0.1:1/0").test_client()
    assert client.get("/health").get_json()["cache"]["place"] == "redis://127.0.0.1:1/0"
    assert client.get("/health").text.count("hush") == 0


def test_metrics_tell_hits_from_work(cached: FlaskClient) -> None:
    for _ in range(3):
        post(cached)
    assert value(cached, "whisper_cached_requests_total", outcome="miss") == 1
    assert value(cached, "whisper_cached_requests_total", outcome="hit") == 2
    assert (value(cached, "whisper_cache_size_bytes") or 0) > 500
    assert value(cached, "whisper_cache_evicted_results") == 0
    assert value(cached, "whisper_queue_wait_seconds_count") == 1
