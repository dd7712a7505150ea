"""Whether the server lives, is ready, and what it does."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from flask import Blueprint, Response, jsonify
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel

from whisperlib import __version__, cache, info
from whisperlib.engine import Engine
from whisperlib.errors import UnavailableError
from whisperlib.web import metrics
from whisperlib.web.openapi import describe
from whisperlib.web.service import current_service

routes = Blueprint("status", __name__)

_STARTED = time.monotonic()


class Health(BaseModel):
    """The process lives. `status` is `loading`, `ready`, `failed` or `stopping`; `reason` says why it failed.

    `models` are all that are loaded now; `model` and `requests` tell of the default one.
    """

    status: str
    reason: str | None
    version: str
    uptime_seconds: float
    model: dict[str, Any] | None
    models: list[str]
    requests: dict[str, Any] | None
    cache: dict[str, Any]
    libraries: dict[str, Any]
    cuda: dict[str, Any] | None = None
    cpu: dict[str, Any]
    memory: dict[str, Any]


class Ready(BaseModel):
    """Requests are taken."""

    status: str
    model: str


@routes.get("/health")
@describe(tag="Status", answers={200: {"application/json": Health}})
def health() -> Response:
    """Tell that the process lives, and what it runs.

    Answers with 200 while the model is loading, too; `/ready` tells whether requests are taken.
    """
    service = current_service()
    adapter = _adapter()
    # The driver's word on CUDA says why a model that could be on a GPU is not.
    asks_driver = adapter is not None and service.settings.device != "cpu"
    told = Health(
        status=service.phase,
        reason=service.reason,
        version=__version__,
        uptime_seconds=round(time.monotonic() - _STARTED, 1),
        model=_model(adapter) if adapter else None,
        models=[service.name_of(key) for key in service.pool.loaded()],
        requests=asdict(adapter.workload()) if adapter else None,
        cache=cache.describe(service.settings, adapter.cache.stats() if adapter and adapter.cache else None),
        **info.collect(probe=False, parts=("libraries", "cpu", "memory", *(["cuda"] if asks_driver else []))),
    )
    return jsonify(told.model_dump(mode="json"))


@routes.get("/ready")
@describe(tag="Status", answers={200: {"application/json": Ready}})
def ready() -> Response:
    """Tell whether the model is loaded and requests are taken."""
    service = current_service()
    service.check_ready()
    return jsonify(Ready(status="ready", model=service.default_name).model_dump())


@routes.get("/metrics")
@describe(tag="Status", answers={200: {"text/plain": None}})
def tell_metrics() -> Response:
    """Tell counts and times in Prometheus' text format.

    Where the server has keys, this needs one, too: it tells how much the server is used.
    """
    return Response(generate_latest(metrics.current().registry), content_type=CONTENT_TYPE_LATEST)


def _adapter() -> Engine | None:
    try:
        return current_service().adapter
    except UnavailableError:
        return None


def _model(adapter: Engine) -> dict[str, Any]:
    config = asdict(adapter.config)
    return {name: str(value) if name in {"path", "library_directory"} else value for name, value in config.items()}
