"""Makes the Flask application."""

from __future__ import annotations

from flask import Flask

from whisperlib.enhance import Enhancer
from whisperlib.fetch import Fetcher
from whisperlib.web import batching, enhancing, errors, guard, kept, log, metrics, running
from whisperlib.web.routes import admin, batches, docs, inference, openai, page, status, transcribe, transcriptions
from whisperlib.web.service import EXTENSION, Service

MAX_FORM_PARTS = 200
MAX_FORM_MEMORY_BYTES = 1 << 20  # of fields that are not files


def create_app(service: Service | None = None) -> Flask:
    """Make the application around `service`, or around one of its own that somebody must `start`."""
    service = service or Service()
    app = Flask(__name__, static_folder=None)
    app.config.update(
        MAX_CONTENT_LENGTH=service.settings.max_body_bytes,
        MAX_FORM_PARTS=MAX_FORM_PARTS,
        MAX_FORM_MEMORY_SIZE=MAX_FORM_MEMORY_BYTES,
    )
    app.json.sort_keys = False  # type: ignore[attr-defined]  # the order of the documentation
    app.extensions[EXTENSION] = service
    app.extensions[running.FETCHER] = Fetcher(service.settings)  # now, so that bad settings show at the start
    app.extensions[enhancing.ENHANCER] = Enhancer.from_settings(service.settings)
    for part in (log, metrics, guard, errors, kept, batching):
        part.register(app)
    for room in (page, status, docs, transcribe, transcriptions, openai, inference, batches, admin):
        app.register_blueprint(room.routes)
    return app
