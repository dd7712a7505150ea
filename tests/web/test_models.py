"""Several models in one server: asked for by name on every route, loaded when they are, and told of everywhere."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.web.busy_engine import busy
from tests.web.conftest import MakeApp, put_model, settings_of
from tests.web.running_server import wait_until
from tests.web.test_metrics import value
from tests.web.test_transcribe import error_of
from whisperlib import assets
from whisperlib.errors import MemoryBudgetError
from whisperlib.models import CATALOGUE
from whisperlib.web.service import Service

AUDIO = (assets.SAMPLES / "seen_020.flac").read_bytes()
TEXT = "Call the doctor on Thursday."


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A model root with tiny, and with a damaged base."""
    put_model(tmp_path, "tiny")
    put_model(tmp_path, "base").write_bytes(b"damaged")
    return tmp_path


@pytest.fixture
def app(make_app: MakeApp, root: Path) -> Flask:
    return make_app(model_root=root)


def post(client: FlaskClient, path: str = "/transcribe", **fields: Any) -> TestResponse:
    data = {"file": (io.BytesIO(AUDIO), "a.flac"), "profile": "fast", **fields}
    return client.post(path, data=data, buffered=True)


def loaded(service: Service) -> list[str]:
    return list(service.pool.loaded())


def test_a_request_names_its_model(client: FlaskClient, service: Service) -> None:
    assert loaded(service) == ["micro"]
    answer = post(client, model="tiny").get_json()
    assert (answer["text"], answer["model"]) == (TEXT, "tiny")
    assert loaded(service) == ["micro", "tiny"]
    assert service.pool.unload("tiny", max_wait_seconds=0)
    assert post(client, "/v1/audio/transcriptions", model="tiny").get_json()["text"] == TEXT
    assert service.pool.unload("tiny", max_wait_seconds=0)
    assert post(client, "/v1/audio/translations", model="tiny").status_code == 200
    assert loaded(service) == ["micro", "tiny"]


def test_the_default_has_several_names_and_whisper_server_s_call_knows_no_other(
    client: FlaskClient, service: Service
) -> None:
    for fields in ({"model": "auto"}, {"model": "whisper-1"}, {"model": "micro"}, {}):
        assert post(client, **fields).get_json()["text"] == TEXT
        assert post(client, "/v1/audio/transcriptions", **fields).get_json()["text"] == TEXT
    assert post(client, "/inference", model="tiny").get_json()["text"] == TEXT
    assert loaded(service) == ["micro"]


def test_a_model_that_is_not_there_is_not_fetched(client: FlaskClient, service: Service, root: Path) -> None:
    for path in ("/transcribe", "/v1/audio/transcriptions", "/v1/audio/translations"):
        for name in ("small", "../tiny", "x" * 500):
            response = post(client, path, model=name)
            assert (response.status_code, error_of(response)["code"]) == (404, "model_not_found")
            assert error_of(response)["message"].endswith("ask for one of 'micro', 'tiny', 'whisper-1'")
            assert len(response.text) < 400
    assert not (root / CATALOGUE["small"].directory).exists()
    assert service.in_flight == 0


def test_a_model_that_is_put_there_later_is_served(client: FlaskClient, root: Path) -> None:
    assert post(client, model="small").status_code == 404
    put_model(root, "small")
    assert post(client, model="small").get_json()["model"] == "small"


def test_a_damaged_file_is_a_clear_error_and_is_not_listed(client: FlaskClient) -> None:
    response = post(client, model="base")
    assert (response.status_code, error_of(response)["code"]) == (500, "model_failed")
    assert "ggml-base.bin" in error_of(response)["message"]
    assert [model["id"] for model in client.get("/v1/models").get_json()["data"]] == ["micro", "tiny", "whisper-1"]
    assert client.get("/v1/models/tiny").get_json()["id"] == "tiny"
    assert client.get("/v1/models/base").status_code == 404


def test_the_micro_model_is_served_only_where_it_was_asked_for(make_app: MakeApp, root: Path) -> None:
    client = make_app(model_size="tiny", model_root=root).test_client()
    assert post(client, model="micro").status_code == 404
    both = make_app(model_size="tiny", preload="micro", model_root=root)
    assert list(both.extensions["whisper_service"].pool.loaded()) == ["tiny", "micro"]
    assert post(both.test_client(), model="micro").get_json()["model"] == "micro"


def test_a_default_with_a_path_is_called_by_its_name(make_app: MakeApp, root: Path) -> None:
    app = make_app(model_size=str(root / CATALOGUE["tiny"].directory / "ggml-tiny.bin"))
    client = app.test_client()
    assert [model["id"] for model in client.get("/v1/models").get_json()["data"]] == ["ggml-tiny", "whisper-1"]
    assert post(client, model="ggml-tiny").get_json()["model"] == "ggml-tiny"
    assert client.get("/ready").get_json()["model"] == "ggml-tiny"
    assert value(client, "whisper_model_memory_bytes", model="ggml-tiny")


def test_a_stream_has_its_model_until_it_is_closed(client: FlaskClient, service: Service) -> None:
    for path in ("/transcribe", "/v1/audio/transcriptions"):
        data = {"file": (io.BytesIO(AUDIO), "a.flac"), "profile": "fast", "model": "tiny", "stream": "true"}
        response = client.post(path, data=data)
        assert service.pool.status("tiny").leases == 1
        assert not service.pool.unload("tiny", max_wait_seconds=0)
        assert TEXT in response.text
        response.close()
        assert service.pool.status("tiny").state == "unloaded"


def test_a_request_says_how_long_its_model_stays(client: FlaskClient, service: Service) -> None:
    post(client, model="tiny")
    assert 1700 < (service.pool.status("tiny").expires_in_seconds or 0) <= 1800
    post(client, model="tiny", keep_alive="600")
    assert 500 < (service.pool.status("tiny").expires_in_seconds or 0) <= 600
    assert post(client, model="tiny", keep_alive="0").status_code == 200
    assert service.pool.status("tiny").expires_in_seconds is None
    assert client.post("/transcribe", json={"audio_url": "http://127.0.0.1/", "keep_alive": -1}).status_code == 400
    assert service.pool.status("micro").expires_in_seconds is None  # it is pinned


def test_an_idle_model_goes_by_itself(client: FlaskClient, service: Service) -> None:
    post(client, model="tiny", keep_alive="0.01")
    wait_until(lambda: loaded(service) == ["micro"], "it is unloaded")


def test_a_model_over_the_budget_is_refused_and_the_rest_goes_on(make_app: MakeApp, root: Path) -> None:
    file_bytes = assets.MICRO_MODEL.stat().st_size
    client = make_app(model_root=root, memory_budget=str(1 << 40)).test_client()
    service: Service = client.application.extensions["whisper_service"]
    taken = service.pool.loaded()["micro"]
    service.pool.budget_bytes = taken + file_bytes - 1
    response = post(client, model="tiny")
    assert (response.status_code, error_of(response)["code"]) == (507, "memory_budget")
    assert response.headers["x-should-retry"] == "false"
    assert "WHISPER_MEMORY_BUDGET" in error_of(response)["message"]
    assert post(client).get_json()["text"] == TEXT


def test_who_would_wait_for_memory_for_too_long_is_told_to_come_back(make_app: MakeApp, root: Path) -> None:
    client = make_app(model_root=root, pinned="tiny").test_client()
    service: Service = client.application.extensions["whisper_service"]
    service.pool.budget_bytes = service.pool.loaded()["micro"]
    with service.lease("micro"):
        response = post(client, model="tiny", max_wait_seconds="0")
    assert (response.status_code, error_of(response)["code"]) == (429, "overloaded")
    assert int(response.headers["Retry-After"]) >= 1


def test_a_full_default_does_not_refuse_who_asks_for_another(make_app: MakeApp, root: Path) -> None:
    app = make_app(model_root=root, max_wait_seconds=0, concurrency=1)
    service: Service = app.extensions["whisper_service"]
    with busy(service.adapter):
        assert post(app.test_client(), model="tiny").status_code == 200
        assert post(app.test_client()).status_code == 429


def test_a_default_that_is_not_pinned_may_go_and_comes_again(make_app: MakeApp, root: Path) -> None:
    client = make_app(model_root=root, pinned="tiny").test_client()
    service: Service = client.application.extensions["whisper_service"]
    assert service.pool.unload("micro")
    assert client.get("/ready").status_code == 200
    health = client.get("/health").get_json()
    assert (health["status"], health["model"], health["models"]) == ("ready", None, [])
    assert value(client, "whisper_loaded_models") == 0
    assert post(client).get_json()["text"] == TEXT
    assert loaded(service) == ["micro"]


def test_health_and_metrics_tell_all_that_are_loaded(client: FlaskClient, service: Service) -> None:
    post(client, model="tiny")
    assert client.get("/health").get_json()["models"] == ["micro", "tiny"]
    assert value(client, "whisper_loaded_models") == 2
    assert value(client, "whisper_model_memory_bytes", model="tiny") == service.pool.loaded()["tiny"]


def test_a_preloaded_model_that_cannot_be_loaded_is_a_failed_start(make_app: MakeApp, root: Path) -> None:
    with pytest.raises(Exception, match="ggml-base.bin"):
        make_app(model_root=root, preload="base")


def test_a_preloaded_model_that_makes_the_default_go_is_a_failed_start(root: Path) -> None:
    file_bytes = assets.MICRO_MODEL.stat().st_size
    budget = str(file_bytes * 3 // 2)
    service = Service(settings_of(model_root=root, preload="tiny", pinned="base", memory_budget=budget, threads=1))
    service.pool._resident_bytes = lambda: 0  # so that a model takes what its file does
    with pytest.raises(MemoryBudgetError, match=r"do not fit together .*: micro \d+ MB, tiny \d+ MB: raise it"):
        service.start()
    assert service.phase == "failed"
    service.stop(0)


def test_each_model_has_results_of_its_own_in_the_cache(make_app: MakeApp, root: Path, tmp_path: Path) -> None:
    path = root / CATALOGUE["tiny"].directory / "ggml-tiny.bin"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1  # the last weight's lowest bit: another model
    path.write_bytes(data)
    client = make_app(model_root=root, cache=str(tmp_path / "kept")).test_client()
    answers = [post(client, model=name) for name in ("micro", "tiny", "tiny", "micro")]
    assert [answer.headers["X-Whisper-Cache"] for answer in answers] == ["miss", "miss", "hit", "hit"]
    assert [answer.get_json()["model"] for answer in answers] == ["micro", "tiny", "tiny", "micro"]
