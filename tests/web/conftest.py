"""The application around the real library and the micro model, asked by Flask's client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from whisperlib.settings import Settings
from whisperlib.web import create_app
from whisperlib.web.service import Service

MakeApp = Callable[..., Flask]


@pytest.fixture
def make_app() -> Iterator[MakeApp]:
    """Make an application with these settings, whose model is loaded; it is stopped at the end."""
    services: list[Service] = []

    def make(**settings: Any) -> Flask:
        given = {"model_size": "micro", "threads": 1, "concurrency": 2, "shutdown_seconds": 0, **settings}
        services.append(Service(Settings(**given)))
        services[-1].start()
        return create_app(services[-1])

    yield make
    for service in services:
        service.stop()


@pytest.fixture
def app(make_app: MakeApp) -> Flask:
    """The application with default settings."""
    return make_app()


@pytest.fixture
def service(app: Flask) -> Service:
    """The service behind `app`."""
    service: Service = app.extensions["whisper_service"]
    return service


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    """A client of `app`."""
    return app.test_client()


def bare_app(**settings: Any) -> Flask:
    """Make an application with these settings whose model is never loaded."""
    return create_app(Service(Settings(**{"model_size": "micro", **settings})))
