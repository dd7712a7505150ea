"""`python -m tests.page.enhancing_app`: `whisperlib serve`, with a double of the calls that the page enhances by.

They are `id` in the result of a transcription, and `/transcriptions/{id}/enhance-stream`, where the server has no such
route; the enhancer behind them is the real one. All is there a second time below PREFIX, as behind a proxy.
TEST_MODEL_NAME is the name by which is decided whether a text is worth a clean-up: no large model is here.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from flask import Blueprint, Flask, Response, current_app
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from whisperlib.enhance import Enhancement, Enhancer, why_not
from whisperlib.results import Transcription
from whisperlib.settings import get_settings
from whisperlib.web import enhancing, schemas, server, stream
from whisperlib.web.app import create_app
from whisperlib.web.errors import ApiError
from whisperlib.web.running import Outcome
from whisperlib.web.service import Service

COMMAND = (sys.executable, "-m", "tests.page.enhancing_app")
PREFIX = "/below"
SECONDS = 60.0

routes = Blueprint("enhancing_double", __name__)
results: dict[str, Transcription] = {}
real_answer = schemas.answer


@routes.get("/transcriptions/<identifier>/enhance-stream")
def enhance(identifier: str) -> Response:
    enhancer: Enhancer | None = current_app.extensions[enhancing.ENHANCER]
    if enhancer is None or identifier not in results:
        raise ApiError(404, f"there is no transcription {identifier!r}", code="not_found")
    result = results[identifier]
    return stream.respond(enhancer.stream(result.text, result.language, None, SECONDS), _line)


def _line(event: str | Enhancement) -> str:
    if isinstance(event, str):
        return stream.event({"text": event}, "enhancement.delta")
    return stream.event({**schemas.clean_up(event), "seconds": event.seconds}, "enhancement.done")


def answer_with_id(outcome: Outcome, **keywords: Any) -> dict[str, Any]:
    identifier = f"t{len(results)}"
    results[identifier] = outcome.result
    return {"id": identifier, **real_answer(outcome, **keywords)}


def make_app(service: Service) -> Flask:
    app = create_app(service)
    if not any(rule.rule.endswith("/enhance-stream") for rule in app.url_map.iter_rules()):
        app.register_blueprint(routes)
        schemas.answer = answer_with_id
    if name := os.environ.get("TEST_MODEL_NAME"):
        enhancing.why_not = lambda mode, whisper_model: why_not(mode, name)  # type: ignore[attr-defined]
    app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {PREFIX: app.wsgi_app})  # type: ignore[method-assign]
    return app


if __name__ == "__main__":
    server.serve(get_settings(), make_app)
