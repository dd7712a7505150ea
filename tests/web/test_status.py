"""/health and /ready."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from tests.web.busy_engine import WAIT_SECONDS, busy
from tests.web.conftest import MakeApp, bare_app
from whisperlib import WhisperLibraryAdapter, __version__
from whisperlib.errors import ModelError, ModelFileError
from whisperlib.settings import Settings, get_settings
from whisperlib.web import create_app
from whisperlib.web.routes.status import Health
from whisperlib.web.service import Service


def failed_service(settings: Settings | None = None) -> Service:
    """A service whose model could not be loaded."""

    def fail(_name: str) -> WhisperLibraryAdapter:
        raise ModelFileError("ggml-small.bin is damaged: fetch it anew")

    service = Service(settings or Settings(model_size="micro"), None if settings else fail)
    with pytest.raises(ModelError):
        service.start()
    return service


def test_a_server_that_loads_lives_but_is_not_ready() -> None:
    client = bare_app().test_client()
    health, ready = client.get("/health"), client.get("/ready")
    assert (health.status_code, health.get_json()["status"], health.get_json()["model"]) == (200, "loading", None)
    assert ready.status_code == 503
    assert ready.get_json()["error"]["code"] == "unavailable"
    assert "loading" in ready.get_json()["error"]["message"]
    assert int(ready.headers["Retry-After"]) >= 1
    assert ready.headers["x-should-retry"] == "true"


def test_probes_are_answered_while_the_model_loads_in_another_thread() -> None:
    loading, go_on = threading.Event(), threading.Event()

    def load(_name: str) -> WhisperLibraryAdapter:
        loading.set()
        assert go_on.wait(WAIT_SECONDS)
        return WhisperLibraryAdapter("micro", threads=1, concurrency=1)

    service = Service(Settings(model_size="micro", shutdown_seconds=0), load)
    client = create_app(service).test_client()
    thread = threading.Thread(target=service.start)
    thread.start()
    try:
        assert loading.wait(WAIT_SECONDS)
        assert client.get("/health").get_json()["status"] == "loading"
        assert client.get("/ready").status_code == 503
        assert client.get("/metrics").status_code == 200
        assert client.post("/transcribe", data=b"audio").status_code == 503
        go_on.set()
        thread.join(WAIT_SECONDS)
        assert client.get("/ready").status_code == 200
    finally:
        go_on.set()
        thread.join(WAIT_SECONDS)
        service.stop()


def test_a_server_that_has_no_model_says_why() -> None:
    client = create_app(failed_service()).test_client()
    health, ready = client.get("/health"), client.get("/ready")
    assert health.status_code == 200
    assert health.get_json()["status"] == "failed"
    assert health.get_json()["reason"] == "ggml-small.bin is damaged: fetch it anew"
    assert ready.status_code == 503
    assert "ggml-small.bin is damaged" in ready.get_json()["error"]["message"]


def test_a_loaded_server_is_ready_and_says_what_it_runs(client: FlaskClient, service: Service) -> None:
    ready = client.get("/ready")
    assert (ready.status_code, ready.get_json()) == (200, {"status": "ready", "model": "micro"})
    health = client.get("/health").get_json()
    Health.model_validate(health)
    assert (health["status"], health["reason"], health["version"]) == ("ready", None, __version__)
    config, model = service.adapter.config, health["model"]
    assert {name: model[name] for name in ("model", "compute_type", "device", "library_variant", "instance_id")} == {
        "model": "micro",
        "compute_type": "f16",
        "device": config.device,
        "library_variant": config.library_variant,
        "instance_id": config.instance_id,
    }
    assert (model["threads"], model["concurrency"]) == (1, 2)
    assert model["sharing_reason"].startswith("threads and concurrency set; ")
    assert model["encoder"] == "ggml"
    assert "has no OpenVINO encoder beside it: run `whisperlib models accelerate " in model["encoder_reason"]
    assert health["libraries"]["loaded"]["whisper_cpp"] == config.library_version
    assert health["cpu"]["usable_cores"] >= 1
    assert health["memory"]["resident_bytes"] > 0
    assert health["requests"]["running"] == 0


def test_an_encoder_that_was_asked_for_is_told_so(make_app: MakeApp) -> None:
    model = make_app(encoder="ggml").test_client().get("/health").get_json()["model"]
    assert (model["encoder"], model["encoder_reason"]) == ("ggml", "asked for")


def test_time_goes_on(client: FlaskClient) -> None:
    first = client.get("/health").get_json()["uptime_seconds"]
    assert 0 <= first <= client.get("/health").get_json()["uptime_seconds"]


def test_a_fallback_to_another_build_or_device_is_told(
    client: FlaskClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "/opt/cuda: self-test failed: no kernel image is available"
    config = dataclasses.replace(service.adapter.config, device="cpu", passed_over=(reason,))
    # A double: a GPU build that does not run is not on every machine.
    monkeypatch.setattr(service.adapter, "_config", config)
    health = client.get("/health").get_json()
    assert health["model"]["device"] == "cpu"
    assert health["model"]["passed_over"] == [reason]
    assert health["cuda"]["reason"]


def test_where_the_cpu_was_asked_for_the_gpu_is_left_alone(make_app: MakeApp) -> None:
    assert make_app(device="cpu").test_client().get("/health").get_json()["cuda"] is None


def test_the_probes_answer_while_every_slot_is_taken(make_app: MakeApp) -> None:
    app = make_app(concurrency=1)
    client = app.test_client()
    with busy(app.extensions["whisper_service"].adapter):
        assert client.get("/health").get_json()["requests"]["running"] == 1
        assert client.get("/ready").status_code == 200
        assert client.get("/metrics").status_code == 200


def test_a_server_that_stops_lives_but_is_not_ready(client: FlaskClient, service: Service) -> None:
    service.stop(0)
    assert client.get("/health").get_json()["status"] == "stopping"
    assert client.get("/metrics").status_code == 200
    ready = client.get("/ready")
    assert ready.status_code == 503
    assert "stopping" in ready.get_json()["error"]["message"]


def test_a_server_that_stops_before_its_model_is_there_lives_too() -> None:
    app = bare_app()
    app.extensions["whisper_service"].stop(0)
    health = app.test_client().get("/health")
    assert (health.status_code, health.get_json()["status"], health.get_json()["model"]) == (200, "stopping", None)


def test_no_secret_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WHISPER_ARTIFACT_URL", "http://user:sesame@127.0.0.1/models")
    monkeypatch.setenv("WHISPER_API_KEYS", "simsalabim")
    monkeypatch.setenv("WHISPER_MODEL_ROOT", str(tmp_path))
    monkeypatch.setenv("WHISPER_MODEL_SIZE", "tiny")
    get_settings.cache_clear()
    try:
        client = create_app(failed_service(get_settings())).test_client()
        told = client.get("/health").text + client.get("/ready").text + client.get("/").text
    finally:
        get_settings.cache_clear()
    assert "tiny" in told
    assert "sesame" not in told
    assert "simsalabim" not in told
