"""The admin calls: who may make them, and what they do."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from openapi_spec_validator import OpenAPIV31SpecValidator
from werkzeug.test import TestResponse

from tests.web.busy_engine import WAIT_SECONDS
from tests.web.conftest import MakeApp, bare_app, put_model
from tests.web.running_server import wait_until
from tests.web.test_models import TEXT, post
from tests.web.test_transcribe import error_of
from whisperlib.web import openapi
from whisperlib.web.routes.admin import AdminModels
from whisperlib.web.service import Service

KEY = {"Authorization": "Bearer sesame"}
CALLS = ("load", "unload", "reload")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    put_model(tmp_path, "tiny")
    return tmp_path


@pytest.fixture
def app(make_app: MakeApp, root: Path) -> Flask:
    return make_app(model_root=root, admin_keys="other,sesame", max_wait_seconds=0.05)


def call(client: FlaskClient, what: str, name: str = "tiny", headers: dict[str, str] | None = None) -> TestResponse:
    return client.post(f"/admin/models/{name}/{what}", headers=KEY if headers is None else headers)


def listed(client: FlaskClient) -> dict[str, dict[str, Any]]:
    told = client.get("/admin/models", headers=KEY).get_json()
    AdminModels.model_validate(told, strict=True)
    assert told["size_bytes"] == sum(one["size_bytes"] for one in told["models"] if one["state"] == "ready")
    return {one["name"]: one for one in told["models"]}


@pytest.mark.parametrize("settings", [{}, {"api_keys": "sesame"}])
def test_without_admin_keys_they_are_refused(settings: dict[str, str]) -> None:
    client = bare_app(**settings).test_client()
    for response in (client.get("/admin/models", headers=KEY), call(client, "load", headers={})):
        assert (response.status_code, error_of(response)["code"]) == (403, "admin_disabled")
        assert "WHISPER_ADMIN_KEYS" in error_of(response)["message"]


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "missing_api_key"),
        ({"Authorization": "Bearer simsalabim"}, "invalid_api_key"),
        ({"Authorization": "Bearer sesam"}, "invalid_api_key"),
    ],
)
def test_an_api_key_is_no_admin_key(headers: dict[str, str], code: str) -> None:
    client = bare_app(api_keys="simsalabim", admin_keys="sesame").test_client()
    for response in (
        client.get("/admin/models", headers=headers),
        *(call(client, one, headers=headers) for one in CALLS),
    ):
        assert (response.status_code, error_of(response)["code"]) == (401, code)
        assert "sesame" not in response.text


def test_an_admin_key_opens_nothing_else() -> None:
    client = bare_app(api_keys="simsalabim", admin_keys="sesame").test_client()
    assert client.get("/v1/models", headers=KEY).status_code == 401
    assert client.get("/admin/models", headers=KEY).status_code == 200
    assert call(client, "load").status_code == 503  # no model is loaded yet


def test_the_list_tells_every_model_that_is_served(client: FlaskClient) -> None:
    told = listed(client)
    assert list(told) == ["micro", "tiny"]
    micro, tiny = told["micro"], told["tiny"]
    assert (micro["state"], micro["measured"], micro["pinned"], micro["leases"]) == ("ready", True, True, 0)
    assert (tiny["state"], tiny["measured"], tiny["pinned"], tiny["idle_seconds"]) == ("unloaded", False, False, None)
    assert micro["idle_seconds"] >= 0
    assert micro["expires_in_seconds"] is None
    assert micro["size_bytes"] >= tiny["size_bytes"] > 1_000_000


def test_a_model_is_loaded_reloaded_and_unloaded(client: FlaskClient, service: Service) -> None:
    loaded = call(client, "load").get_json()
    assert (loaded["name"], loaded["state"]) == ("tiny", "ready")
    assert 1700 < listed(client)["tiny"]["expires_in_seconds"] <= 1800
    first = service.pool.engine("tiny")
    assert first
    assert call(client, "load").get_json()["state"] == "ready"
    assert service.pool.engine("tiny") is first
    assert call(client, "reload").get_json()["state"] == "ready"
    assert service.pool.engine("tiny") is not first
    assert first.closed
    assert call(client, "unload").get_json()["state"] == "unloaded"
    assert service.pool.engine("tiny") is None


def test_the_default_may_be_reloaded_by_any_name(client: FlaskClient, service: Service) -> None:
    for name in ("auto", "micro"):
        before = service.adapter
        assert call(client, "reload", name).get_json()["name"] == "micro"
        assert service.adapter is not before
    assert post(client).get_json()["text"] == TEXT


def test_an_unload_that_takes_long_says_so_and_is_done_later(client: FlaskClient, service: Service) -> None:
    with service.lease("tiny") as engine:
        assert listed(client)["tiny"]["leases"] == 1
        told = call(client, "unload").get_json()
        assert (told["state"], told["leases"]) == ("unloading", 1)
        assert not engine.closed
    assert listed(client)["tiny"]["state"] == "unloaded"
    assert engine.closed


@pytest.mark.parametrize("what", CALLS)
def test_a_model_that_is_not_served_is_not_found(client: FlaskClient, what: str) -> None:
    response = call(client, what, "large-v3")
    assert (response.status_code, error_of(response)["code"]) == (404, "model_not_found")


def test_a_file_that_was_damaged_meanwhile_says_why(client: FlaskClient, root: Path) -> None:
    call(client, "load")
    next(root.rglob("ggml-tiny.bin")).write_bytes(b"damaged")
    response = call(client, "reload")
    assert (response.status_code, error_of(response)["code"]) == (500, "model_failed")
    assert post(client, model="micro").status_code == 200


def test_a_model_whose_file_is_gone_is_told_of_and_can_be_unloaded(client: FlaskClient, root: Path) -> None:
    call(client, "load")
    next(root.rglob("ggml-tiny.bin")).unlink()
    assert post(client, model="tiny").status_code == 404
    assert listed(client)["tiny"]["state"] == "ready"
    assert call(client, "unload").get_json()["state"] == "unloaded"
    assert list(listed(client)) == ["micro"]
    assert call(client, "unload").status_code == 404


def test_a_stop_ends_a_call_that_waits(make_app: MakeApp, root: Path) -> None:
    app = make_app(model_root=root, admin_keys="sesame")
    service: Service = app.extensions["whisper_service"]
    answers: list[int] = []
    with service.lease("tiny"):
        thread = threading.Thread(target=lambda: answers.append(call(app.test_client(), "unload").status_code))
        thread.start()
        wait_until(lambda: service.pool.status("tiny").state == "unloading", "it waits")
        service.stop(0)
        thread.join(WAIT_SECONDS)
    assert answers == [503]


def test_the_document_says_which_key_they_need() -> None:
    document = openapi.document(bare_app(admin_keys="sesame"))
    OpenAPIV31SpecValidator(document).validate()
    operation = document["paths"]["/admin/models/{name}/load"]["post"]
    assert operation["security"] == [{"admin_key": []}]
    assert document["components"]["securitySchemes"]["admin_key"] == {"type": "http", "scheme": "bearer"}
    assert "security" not in document["paths"]["/transcribe"]["post"]
