"""The application around the real library and the micro model, asked by Flask's client."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.web.running_server import NO_MODELS
from whisperlib import assets
from whisperlib.models import CATALOGUE
from whisperlib.settings import Settings
from whisperlib.web import create_app
from whisperlib.web.service import Service

MakeApp = Callable[..., Flask]


@pytest.fixture
def make_app() -> Iterator[MakeApp]:
    """Make an application with these settings, whose model is loaded; it is stopped at the end."""
    services: list[Service] = []

    def make(**settings: Any) -> Flask:
        given = {"threads": 1, "concurrency": 2, "shutdown_seconds": 0, **settings}
        services.append(Service(settings_of(**given)))
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
    return create_app(Service(settings_of(**settings)))


def settings_of(**settings: Any) -> Settings:
    """Return settings with the micro model, and no other unless they name a model root."""
    return Settings(**{"model_size": "micro", "model_root": NO_MODELS, **settings})


def put_model(root: Path, name: str) -> Path:
    """Make the micro model the file of another name below a model root; return it."""
    model = CATALOGUE[name]
    path = root / model.directory / model.file_name("f16")
    path.parent.mkdir(parents=True)
    shutil.copyfile(assets.MICRO_MODEL, path)
    return path
