"""`python -m tests.page.app`: `whisperlib serve`, there a second time below PREFIX, as behind a proxy.

TEST_MODEL_NAME is the name by which is decided whether a text is worth a clean-up: no large model is here.
"""

from __future__ import annotations

import os
import sys

from flask import Flask
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from whisperlib.enhance import why_not
from whisperlib.settings import get_settings
from whisperlib.web import enhancing, server
from whisperlib.web.app import create_app
from whisperlib.web.service import Service

COMMAND = (sys.executable, "-m", "tests.page.app")
PREFIX = "/below"


def make_app(service: Service) -> Flask:
    app = create_app(service)
    app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {PREFIX: app.wsgi_app})  # type: ignore[method-assign]
    if name := os.environ.get("TEST_MODEL_NAME"):
        enhancing.why_not = lambda mode, whisper_model: why_not(mode, name)  # type: ignore[attr-defined]
    return app


if __name__ == "__main__":
    server.serve(get_settings(), make_app)
