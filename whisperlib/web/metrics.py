"""What `/metrics` tells, in Prometheus' terms."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import cast

from flask import Flask, Response, current_app, g, request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from whisperlib import system
from whisperlib.cache import Stats
from whisperlib.engine import Kept
from whisperlib.enhance import Enhancement
from whisperlib.errors import UnavailableError
from whisperlib.results import Transcription
from whisperlib.web import log
from whisperlib.web.service import EXTENSION as SERVICE
from whisperlib.web.service import Service

EXTENSION = "whisper_metrics"

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)
_METHODS = ("GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE")
_FACTORS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """The metrics of one application, in a registry of their own."""

    def __init__(self, service: Service) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(_Engine(service))
        self.requests = Counter(
            "whisper_http_requests", "Requests answered.", ["route", "method", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "whisper_http_request_seconds", "From head to last byte.", ["route"], buckets=_SECONDS, registry=registry
        )
        self.errors = Counter("whisper_errors", "Requests refused or failed.", ["code"], registry=registry)
        self.audio = Counter("whisper_audio_seconds", "Audio transcribed.", registry=registry)
        self.inference = Counter("whisper_inference_seconds", "Time that the model ran.", registry=registry)
        self.wait = Histogram("whisper_queue_wait_seconds", "Wait for a slot.", buckets=_SECONDS, registry=registry)
        self.factor = Histogram(
            "whisper_real_time_factor", "Seconds of work per second of audio.", buckets=_FACTORS, registry=registry
        )
        self.fallbacks = Counter(
            "whisper_fallback_segments", "Segments decoded again at a higher temperature.", registry=registry
        )
        self.dropped = Counter(
            "whisper_dropped_windows", "Windows taken for silence, whatever the model made up there.", registry=registry
        )
        self.cache = Counter(
            "whisper_cached_requests", "Transcriptions by where they came from.", ["outcome"], registry=registry
        )
        self.batch_items = Counter(
            "whisper_batch_items", "Items of batches that have ended.", ["state"], registry=registry
        )
        self.fetches = Counter("whisper_fetches", "Files fetched from an audio_url.", ["outcome"], registry=registry)
        self.fetched_bytes = Counter("whisper_fetched_bytes", "Bytes fetched from an audio_url.", registry=registry)
        self.fetch_seconds = Histogram(
            "whisper_fetch_seconds", "Time to fetch a file.", buckets=_SECONDS, registry=registry
        )
        self.enhancements = Counter(
            "whisper_enhancements", "Clean-ups by a language model.", ["status"], registry=registry
        )
        self.enhancement_seconds = Histogram(
            "whisper_enhancement_seconds", "Time of a clean-up.", buckets=_SECONDS, registry=registry
        )
        self.kept_results = Gauge(
            "whisper_kept_results", "Results that can be asked for again by their ids.", registry=registry
        )


class _Engine(Collector):
    """What is read at the moment when somebody asks."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        service = self._service
        resident_bytes = sum(map(system.resident_bytes, {os.getpid(), *service.pool.process_ids()}))
        values: list[tuple[str, str, float]] = [
            ("whisper_ready", "1 while the model is loaded and requests are taken.", service.phase == "ready"),
            ("whisper_in_flight_requests", "Requests that are inside.", service.in_flight),
            ("whisper_resident_memory_bytes", "Of this process and of those that have models.", resident_bytes),
        ]
        try:
            adapter = service.adapter
        except UnavailableError:
            pass
        else:
            work, config = adapter.workload(), adapter.config
            values += [
                ("whisper_running_requests", "Requests that hold a slot.", work.running),
                ("whisper_waiting_requests", "Requests that wait for a slot.", work.waiting),
                ("whisper_queue_audio_seconds", "Audio still to be transcribed.", work.queued_audio_seconds),
                ("whisper_predicted_wait_seconds", "Wait of a short request that comes now.", work.wait_seconds),
                ("whisper_measured_real_time_factor", "As admission reckons with it.", work.real_time_factor),
                ("whisper_slots", "Requests that may run at once.", config.concurrency),
                ("whisper_threads", "Threads of each.", config.threads),
                *_of_cache(adapter.cache),
                ("whisper_model_load_seconds", "Loading the model took.", config.load_seconds),
            ]
        for name, text, value in values:
            yield GaugeMetricFamily(name, text, value)
        yield from _of_models(service)


def _of_models(service: Service) -> Iterator[Metric]:
    sizes = service.pool.loaded()
    yield GaugeMetricFamily("whisper_loaded_models", "Models that are in memory.", len(sizes))
    family = GaugeMetricFamily("whisper_model_memory_bytes", "Memory that a model takes.", labels=["model"])
    for name, size_bytes in sizes.items():
        family.add_metric([service.name_of(name)], size_bytes)
    yield family


def _of_cache(cache: Kept | None) -> Iterator[tuple[str, str, float]]:
    stats = cache.stats() if cache else Stats(None, 0)
    if stats.size_bytes is not None:
        yield "whisper_cache_size_bytes", "Results that are kept in files, as counted last.", stats.size_bytes
    if cache:
        yield "whisper_cache_evicted_results", "Results that this process deleted to make room.", stats.evictions


def register(app: Flask) -> None:
    """Count every request of `app`."""
    app.extensions[EXTENSION] = Metrics(app.extensions[SERVICE])
    app.after_request(_count)


def current() -> Metrics:
    """Return the metrics of the app that handles the request."""
    return cast(Metrics, current_app.extensions[EXTENSION])


def observe(result: Transcription, fetch_seconds: float = 0.0) -> None:
    """Count a transcription that has ended."""
    metrics, timings = current(), result.timings
    if fetch_seconds:
        metrics.fetch_seconds.observe(fetch_seconds)
    if result.cache != "off":
        metrics.cache.labels(result.cache).inc()
    if result.cache in {"hit", "shared"}:
        return  # the rest tells of work, and there was none
    metrics.audio.inc(result.duration)
    metrics.inference.inc(timings.inference)
    metrics.wait.observe(timings.queue)
    if result.duration:
        metrics.factor.observe((timings.vad + timings.inference) / result.duration)
    metrics.fallbacks.inc(sum(bool(segment.temperature) for segment in result.segments))
    metrics.dropped.inc(result.dropped_windows)


def fetched(outcome: str, size_bytes: int = 0) -> None:
    """Count a fetch: `outcome` is `ok` or the code of an error."""
    metrics = current()
    metrics.fetches.labels(outcome).inc()
    metrics.fetched_bytes.inc(size_bytes)


def enhanced(enhancement: Enhancement) -> None:
    """Count a clean-up that has ended; the time of one that was skipped is none."""
    metrics = current()
    metrics.enhancements.labels(enhancement.status).inc()
    if enhancement.status != "skipped":
        metrics.enhancement_seconds.observe(enhancement.seconds)


def _count(response: Response) -> Response:
    metrics = current()
    # The rule, never the path: anybody could make up as many of those as they like.
    route = request.url_rule.rule if request.url_rule else "none"
    method = request.method if request.method in _METHODS else "other"
    started, record = g.started, g.record

    def count() -> None:
        metrics.requests.labels(route, method, str(log.final_status(response, record))).inc()
        metrics.request_seconds.labels(route).observe(time.monotonic() - started)
        if code := record.get("error"):
            metrics.errors.labels(code).inc()

    response.call_on_close(count)
    return response
