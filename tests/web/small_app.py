"""`python -m tests.web.small_app`: a server like `whisperlib serve` around an application that tests command.

It stands in for the real application where a test needs requests that take exactly as long as it likes.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from typing import Any

from flask import Blueprint, Flask, Response, request

from whisperlib.errors import TranscriptionCancelled
from whisperlib.settings import get_settings
from whisperlib.web import errors, server
from whisperlib.web.client import cancel_when_gone
from whisperlib.web.service import EXTENSION, Service, current_service

routes = Blueprint("small", __name__)
release = threading.Event()
cancelled: list[str] = []


@routes.get("/ready")
def ready() -> tuple[dict[str, Any], int]:
    service = current_service()
    return {"phase": service.phase, "reason": service.reason}, 200 if service.phase == "ready" else 503


@routes.get("/state")
def state() -> dict[str, Any]:
    service = current_service()
    running = service.adapter.workload().running if service.phase == "ready" else 0
    return {"in_flight": service.in_flight, "running": running, "cancelled": cancelled}


@routes.post("/length")
def length() -> dict[str, int]:
    return {"length": len(request.get_data())}


@routes.post("/unread")
def unread() -> str:
    return "not read"


@routes.get("/wait")
def wait() -> str:
    """Wait until released or cancelled, as a request in the engine does."""
    with current_service().admitted() as token, cancel_when_gone(request.environ, token):
        stopped = threading.Event()
        token.add_listener(stopped.set)
        while not release.wait(0.01):
            if stopped.is_set():
                cancelled.append(request.args.get("name", ""))
                raise TranscriptionCancelled("stopped")
        return "released"


@routes.post("/transcribe")
def transcribe() -> dict[str, str]:
    service = current_service()
    with service.admitted() as token, cancel_when_gone(request.environ, token):
        try:
            return {"text": service.adapter.transcribe(request.get_data(), language="en", cancel=token).text}
        except TranscriptionCancelled:
            cancelled.append(request.args.get("name", ""))
            raise


@routes.post("/release")
def release_all() -> str:
    release.set()
    return ""


@routes.get("/native/<int:seconds>")
def native(seconds: int) -> str:
    """Be in native code, which lets other threads run."""
    ctypes.CDLL(None).sleep(seconds)
    return "awake"


@routes.get("/endless")
def endless() -> Response:
    service = current_service()

    def pieces() -> Iterator[bytes]:
        with service.admitted():
            while True:
                yield bytes(65_536)

    return Response(pieces())


@routes.get("/header")
def header() -> Response:
    return Response("", headers={"X-Bad": "\x01"})


def make_app(service: Service) -> Flask:
    app = Flask(__name__)
    app.extensions[EXTENSION] = service
    app.register_blueprint(routes)
    errors.register(app)
    return app


if __name__ == "__main__":
    server.HEARTBEAT_SECONDS = int(os.environ.get("TEST_HEARTBEAT_SECONDS", server.HEARTBEAT_SECONDS))
    server.serve(get_settings(), make_app)
