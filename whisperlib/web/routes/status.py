"""Whether the server lives, is ready, and what it does; and the first page."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from flask import Blueprint, Response, jsonify, request
from markupsafe import escape
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

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>whisperlib</title>
<style>
  :root { color-scheme: light dark }
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 42rem; margin: 3rem auto; padding: 0 1rem }
  pre { overflow-x: auto; padding: 1rem; border: 1px solid; border-radius: .5rem }
</style>
<h1>whisperlib</h1>
<p>Whisper speech-to-text. Send audio, get its text:</p>
<pre>curl {address}transcribe -F file=@talk.mp3
curl {address}transcribe -d '{"audio_url": "https://example.org/talk.mp3"}'</pre>
<ul>
  <li><a href="docs">Every call, to read and to try</a> (<a href="openapi.json">OpenAPI document</a>)</li>
  <li><a href="health">Health</a>, <a href="ready">readiness</a>, <a href="metrics">metrics</a></li>
  <li>Clients of OpenAI's audio API: base URL <code>{address}v1</code></li>
</ul>
</html>
"""


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


@routes.get("/")
@describe(tag="Documentation", answers={200: {"text/html": None, "application/json": {"type": "object"}}})
def index() -> Response:
    """Say what this is, and where to go."""
    links = {"documentation": "/docs", "openapi": "/openapi.json", "health": "/health", "metrics": "/metrics"}
    if not request.accept_mimetypes.accept_html:
        response = jsonify({"name": "whisperlib", "version": __version__, **links})
    else:
        page = _PAGE.replace("{address}", str(escape(request.root_url)))  # the client says who we are
        response = Response(page, mimetype="text/html")
        response.headers["Content-Security-Policy"] = _POLICY
    response.vary.add("Accept")
    return response


def _adapter() -> Engine | None:
    try:
        return current_service().adapter
    except UnavailableError:
        return None


def _model(adapter: Engine) -> dict[str, Any]:
    config = asdict(adapter.config)
    return {name: str(value) if name in {"path", "library_directory"} else value for name, value in config.items()}
