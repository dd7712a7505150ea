"""Loading and unloading models by hand; the keys of these calls are their own."""

from __future__ import annotations

from dataclasses import asdict

from flask import Blueprint, Response, jsonify
from pydantic import BaseModel

from whisperlib.pool import State
from whisperlib.web import guard
from whisperlib.web.openapi import describe
from whisperlib.web.service import Service, current_service

routes = Blueprint(guard.ADMIN, __name__, url_prefix="/admin")


class AdminModel(BaseModel):
    """A model that is served.

    `state` is `unloaded`, `loading`, `ready`, `unloading` or `failed`, and `reason` says why it failed. `size_bytes` is
    the memory that it takes if it was `measured`, else the size of its file. `leases` are the requests that use it.
    `idle_seconds` have passed since its last use, and in `expires_in_seconds` it is unloaded; null where it is not
    loaded, is in use, or stays.
    """

    name: str
    state: State
    reason: str | None
    size_bytes: int | None
    measured: bool
    leases: int
    pinned: bool
    idle_seconds: float | None
    expires_in_seconds: float | None


class AdminModels(BaseModel):
    """The models that are served, and the bytes that they take and may take together; null: no limit."""

    models: list[AdminModel]
    size_bytes: int
    memory_budget_bytes: int | None


@routes.get("/models")
@describe(tag="Admin", answers={200: {"application/json": AdminModels}})
def models() -> Response:
    """Tell of every model that is served."""
    service = current_service()
    told = AdminModels(
        models=[_told(service, service.key_of(name)) for name in service.served()],
        size_bytes=sum(service.pool.loaded().values()),
        memory_budget_bytes=service.pool.budget_bytes,
    )
    return jsonify(told.model_dump())


@routes.post("/models/<name>/load")
@describe(tag="Admin", answers={200: {"application/json": AdminModel}})
def load(name: str) -> Response:
    """Load a model, unless it is loaded."""
    service = current_service()
    with service.admitted() as token:
        key = service.key_of(name)
        service.pool.load(key, max_wait_seconds=service.settings.max_wait_seconds, cancel=token)
        return jsonify(_told(service, key).model_dump())


@routes.post("/models/<name>/unload")
@describe(tag="Admin", answers={200: {"application/json": AdminModel}})
def unload(name: str) -> Response:
    """Unload a model, also a pinned one, when the requests that use it have ended.

    Where that takes longer than a request may wait the answer says `unloading`, and it is unloaded later.
    """
    service = current_service()
    with service.admitted() as token:
        key = service.key_of(name)
        service.pool.unload(key, max_wait_seconds=service.settings.max_wait_seconds, cancel=token)
        return jsonify(_told(service, key).model_dump())


@routes.post("/models/<name>/reload")
@describe(tag="Admin", answers={200: {"application/json": AdminModel}})
def reload(name: str) -> Response:
    """Load a model anew, from its file as it is now.

    Where there is memory for both, requests take the old one until the new one is there; else they wait.
    """
    service = current_service()
    with service.admitted() as token:
        key = service.key_of(name)
        service.pool.reload(key, max_wait_seconds=service.settings.max_wait_seconds, cancel=token)
        return jsonify(_told(service, key).model_dump())


def _told(service: Service, key: str) -> AdminModel:
    status = asdict(service.pool.status(key))
    for field in ("idle_seconds", "expires_in_seconds"):
        status[field] = status[field] and round(status[field], 1)
    return AdminModel(**{**status, "name": service.name_of(key)})
