"""/metrics: what happened, and what happens, as Prometheus reads it."""

from __future__ import annotations

import threading

import pytest
from flask import Flask
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families

from tests.web.busy_engine import WAIT_SECONDS, busy
from tests.web.conftest import MakeApp, bare_app
from tests.web.running_server import wait_until
from tests.web.test_running import AUDIO, file_server, send_audio
from whisperlib import assets
from whisperlib.results import Segment, Timings, Transcription
from whisperlib.web import metrics
from whisperlib.web.service import Service

LONG = (assets.SAMPLES / "long_slt75.flac").read_bytes()
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples_of(client: FlaskClient) -> Samples:
    """Return every sample by its name and labels."""
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response.content_type.startswith("text/plain; version=")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def value(client: FlaskClient, name: str, **labels: str) -> float | None:
    """Return a sample's value, None if there is none."""
    return samples_of(client).get((name, frozenset(labels.items())))


def label_sets(client: FlaskClient, name: str) -> list[dict[str, str]]:
    return [dict(labels) for sample, labels in samples_of(client) if sample == name]


def test_a_transcription_is_counted(client: FlaskClient) -> None:
    response = client.post("/transcribe", data=AUDIO, buffered=True)
    timings = response.get_json()["timings"]
    assert value(client, "whisper_audio_seconds_total") == pytest.approx(6.343, abs=0.001)
    assert value(client, "whisper_inference_seconds_total") == pytest.approx(timings["inference"], abs=0.001)
    assert value(client, "whisper_queue_wait_seconds_count") == 1
    assert value(client, "whisper_real_time_factor_count") == 1
    factor = (timings["vad"] + timings["inference"]) / 6.343
    assert value(client, "whisper_real_time_factor_sum") == pytest.approx(factor, abs=0.001)
    route = {"route": "/transcribe"}
    assert value(client, "whisper_http_requests_total", **route, method="POST", status="200") == 1
    assert value(client, "whisper_http_request_seconds_count", **route) == 1
    assert (value(client, "whisper_http_request_seconds_sum", **route) or 0) >= timings["inference"]


def test_fallbacks_and_dropped_windows_are_counted() -> None:
    app = bare_app()

    def segment(temperature: float | None) -> Segment:
        return Segment(id=0, start=0, end=1, text="a", temperature=temperature)

    result = Transcription(
        "a a a a",
        tuple(map(segment, (0.0, 0.2, 1.0, None))),
        "en",
        duration=10.0,
        timings=Timings(queue=0.5, inference=2.0),
        dropped_windows=3,
    )
    with app.app_context():
        metrics.observe(result, 0.25)
    client = app.test_client()
    assert value(client, "whisper_fallback_segments_total") == 2
    assert value(client, "whisper_dropped_windows_total") == 3
    assert value(client, "whisper_queue_wait_seconds_sum") == 0.5
    assert value(client, "whisper_real_time_factor_sum") == 0.2
    assert value(client, "whisper_fetch_seconds_sum") == 0.25


def test_what_has_no_length_has_no_real_time_factor() -> None:
    app = bare_app()
    with app.app_context():
        metrics.observe(Transcription("", (), None, duration=0.0))
    assert value(app.test_client(), "whisper_real_time_factor_count") == 0


def test_what_runs_and_waits_is_told(make_app: MakeApp) -> None:
    app = make_app(concurrency=1)
    client, service = app.test_client(), app.extensions["whisper_service"]
    with busy(service.adapter):
        thread = threading.Thread(target=lambda: app.test_client().post("/transcribe", data=LONG))
        thread.start()
        wait_until(lambda: service.adapter.workload().waiting == 1, "the second request waits")
        assert value(client, "whisper_running_requests") == 1
        assert value(client, "whisper_waiting_requests") == 1
        assert value(client, "whisper_in_flight_requests") == 1
        assert (value(client, "whisper_queue_audio_seconds") or 0) > 60
        assert (value(client, "whisper_predicted_wait_seconds") or 0) > 0
    thread.join(WAIT_SECONDS)
    assert not thread.is_alive()
    assert value(client, "whisper_waiting_requests") == 0
    assert value(client, "whisper_in_flight_requests") == 0


def test_the_engine_is_told_once_it_is_there(app: Flask, service: Service) -> None:
    assert value(bare_app().test_client(), "whisper_ready") == 0
    assert value(bare_app().test_client(), "whisper_slots") is None
    client = app.test_client()
    assert value(client, "whisper_ready") == 1
    assert value(client, "whisper_slots") == 2
    assert value(client, "whisper_threads") == 1
    assert value(client, "whisper_model_load_seconds") == pytest.approx(service.adapter.config.load_seconds)
    assert (value(client, "whisper_measured_real_time_factor") or 0) > 0
    assert (value(client, "whisper_resident_memory_bytes") or 0) > 10e6
    assert (value(client, "process_cpu_seconds_total") or 0) > 0


def test_errors_are_counted_by_their_code(client: FlaskClient) -> None:
    client.post("/transcribe", data=b"not audio", buffered=True)
    client.post("/transcribe", data=AUDIO, query_string={"beam_size": "99"}, buffered=True)
    client.post("/inference", data=AUDIO, buffered=True)
    assert value(client, "whisper_errors_total", code="invalid_audio") == 1
    assert value(client, "whisper_errors_total", code="invalid_option") == 1
    assert value(client, "whisper_errors_total", code="missing_audio") == 1
    assert value(client, "whisper_audio_seconds_total") == 0


def test_a_client_that_leaves_is_counted_as_gone(client: FlaskClient) -> None:
    response = client.post("/transcribe", data=LONG, query_string={"stream": "1"}, buffered=False)
    next(iter(response.response))
    response.close()
    assert value(client, "whisper_http_requests_total", route="/transcribe", method="POST", status="499") == 1
    assert value(client, "whisper_http_requests_total", route="/transcribe", method="POST", status="200") is None
    assert value(client, "whisper_errors_total", code="client_gone") == 1


def test_fetches_are_counted_by_their_outcome(make_app: MakeApp) -> None:
    client = make_app(url_allow="127.0.0.1").test_client()
    with file_server(send_audio) as url:
        assert client.post("/transcribe", json={"audio_url": url}).status_code == 200
    assert client.post("/transcribe", json={"audio_url": "http://127.0.0.2/a.flac"}).status_code == 400
    assert value(client, "whisper_fetches_total", outcome="ok") == 1
    assert value(client, "whisper_fetches_total", outcome="url_refused") == 1
    assert value(client, "whisper_fetched_bytes_total") == len(AUDIO)
    assert value(client, "whisper_fetch_seconds_count") == 1


def test_clients_cannot_make_up_labels() -> None:
    client = bare_app().test_client()
    for number in range(10):
        client.get(f"/made/up/{number}", buffered=True)
        client.get(f"/v1/models/{number}", buffered=True)
        client.open("/made/up", method=f"BREW{number}", buffered=True)
    requests = label_sets(client, "whisper_http_requests_total")
    assert sorted((one["route"], one["method"], one["status"]) for one in requests) == [
        ("/v1/models/<path:model_id>", "GET", "503"),
        ("none", "GET", "404"),
        ("none", "other", "404"),
    ]
    assert [one["code"] for one in label_sets(client, "whisper_errors_total")].count("not_found") == 1


def test_every_application_counts_for_itself() -> None:
    one, other = bare_app().test_client(), bare_app().test_client()
    one.get("/health", buffered=True)
    assert value(one, "whisper_http_requests_total", route="/health", method="GET", status="200") == 1
    assert value(other, "whisper_http_requests_total", route="/health", method="GET", status="200") is None


def test_names_are_as_prometheus_has_them() -> None:
    families = list(text_string_to_metric_families(bare_app().test_client().get("/metrics").text))
    ours = [family for family in families if family.name.startswith("whisper_")]
    assert len(ours) > 10
    assert all(family.documentation for family in ours)
    assert {family.name.partition("_")[0] for family in families} <= {"whisper", "process"}
