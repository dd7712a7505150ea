"""Loading and unloading models by hand; the keys of these calls are their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, get_type_hints

import pydantic
from flask import Blueprint, Response, jsonify
from pydantic import BaseModel

from whisperlib.pool import ModelPool, ModelStatus
from whisperlib.web import guard
from whisperlib.web.openapi import describe
from whisperlib.web.service import Service, current_service

routes = Blueprint(guard.ADMIN, __name__, url_prefix="/admin")


_FIELDS: dict[str, Any] = {name: (kind, ...) for name, kind in get_type_hints(ModelStatus).items()}
AdminModel = pydantic.create_model("AdminModel", __doc__=ModelStatus.__doc__, **_FIELDS)


class AdminModels(BaseModel):
    """The models that are served or in memory, and the bytes that they take and may take together; null: no limit."""

    models: list[AdminModel]
    size_bytes: int
    memory_budget_bytes: int | None


@routes.get("/models")
@describe(tag="Admin", answers={200: {"application/json": AdminModels}})
def models() -> Response:
    """Tell of every model that is served, and of those whose files are gone while they are in memory."""
    service = current_service()
    keys = dict.fromkeys([*map(service.key_of, service.served()), *service.pool.loaded()])
    return jsonify(
        models=[_told(service, key) for key in keys],
        size_bytes=sum(service.pool.loaded().values()),
        memory_budget_bytes=service.pool.budget_bytes,
    )


@routes.post("/models/<name>/load")
@describe(tag="Admin", answers={200: {"application/json": AdminModel}})
def load(name: str) -> Response:
    """Load a model, unless it is loaded."""
    return _changed(name, ModelPool.load)


@routes.post("/models/<name>/unload")
@describe(tag="Admin", answers={200: {"application/json": AdminModel}})
def unload(name: str) -> Response:
    """Unload a model, also a pinned one, when the requests that use it have ended.

    Where that takes longer than a request may wait the answer says `unloading`, and it is unloaded later.
    """
    return _changed(name, ModelPool.unload)


@routes.post("/models/<name>/reload")
@describe(tag="Admin", answers={200: {"application/json": AdminModel}})
def reload(name: str) -> Response:
    """Load a model anew, from its file as it is now.

    Where there is memory for both, requests take the old one until the new one is there; else they wait.
    """
    return _changed(name, ModelPool.reload)


def _changed(name: str, change: Callable[..., object]) -> Response:
    """Have the pool change what is in memory of a model, and tell of it."""
    service = current_service()
    with service.admitted() as token:
        key = name if name in service.pool.loaded() else service.key_of(name)
        change(service.pool, key, max_wait_seconds=service.settings.max_wait_seconds, cancel=token)
        return jsonify(_told(service, key))


def _told(service: Service, key: str) -> dict[str, Any]:
    """Return what is known of a model in the form of `AdminModel`, ready for JSON."""
    told = asdict(replace(service.pool.status(key), name=service.name_of(key)))
    return {name: round(value, 1) if isinstance(value, float) else value for name, value in told.items()}
