"""Errors: each has its status and code, and on every path the shape of OpenAI's API."""

from __future__ import annotations

import io
import logging
import re
from typing import Any

import pytest
from flask import Flask, request
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.web.conftest import bare_app
from whisperlib import errors
from whisperlib.web.errors import ApiError, Problem, problem_of


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ApiError(404, "no", code="model_not_found", param="model"), (404, "model_not_found", "model", False)),
        (errors.OverloadedError("full", 2.5), (429, "overloaded", None, True)),
        (errors.UnavailableError("loading", 5), (503, "unavailable", None, True)),
        (errors.ClosedError("closed"), (503, "unavailable", None, True)),
        (errors.OptionError("bad", "beam_size"), (400, "invalid_option", "beam_size", False)),
        (errors.AudioTooLongError("long"), (413, "audio_too_long", None, False)),
        (errors.AudioDecodeError("noise"), (400, "invalid_audio", None, False)),
        (errors.UrlRefusedError("no"), (400, "url_refused", None, False)),
        (errors.FetchTooLargeError("large"), (413, "body_too_large", None, False)),
        (errors.FetchTimeoutError("late"), (400, "url_timeout", None, False)),
        (errors.FetchError("gone"), (400, "url_unreachable", None, False)),
        (errors.DeadlineExceeded("late"), (504, "deadline_exceeded", None, False)),
        (errors.TranscriptionCancelled("stopped"), (503, "cancelled", None, True)),
        (errors.OutOfMemoryError("small"), (503, "out_of_memory", None, True)),
        (errors.EngineCrashedError("ended by SIGSEGV"), (503, "engine_crashed", None, True)),
        (errors.EngineError("whisper_full returned -6", -6), (500, "engine_failed", None, False)),
        (errors.ModelFileError("damaged"), (500, "model_failed", None, False)),
        (ZeroDivisionError("division by zero"), (500, "internal_error", None, False)),
    ],
)
def test_an_exception_has_its_status_code_and_field(
    error: Exception, expected: tuple[int, str, str | None, bool]
) -> None:
    problem = problem_of(error)
    assert (problem.status, problem.code, problem.param, problem.retry) == expected


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (503, "server_error"),
    ],
)
def test_the_type_follows_from_the_status(status: int, kind: str) -> None:
    assert Problem(status, "no").body()["error"]["type"] == kind


def failing(error: Exception) -> Flask:
    """An application with a page that raises `error`, one that reads a form, and one that reads JSON."""
    app = bare_app(max_body_bytes=1_000_000)

    def fail() -> str:
        raise error

    def read_json() -> Any:
        return request.get_json()

    app.add_url_rule("/fail", "fail", fail)
    app.add_url_rule("/form", "form", lambda: dict(request.form), methods=["POST"])
    app.add_url_rule("/json", "json", read_json, methods=["POST"])
    return app


@pytest.fixture
def client() -> FlaskClient:
    return failing(ZeroDivisionError()).test_client()


def error_of(response: TestResponse) -> dict[str, Any]:
    """Return the error, which must be in OpenAI's shape."""
    assert response.content_type == "application/json"
    assert response.headers["x-request-id"]
    body = response.get_json()
    assert list(body) == ["error"]
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_a_client_is_told_when_to_try_again() -> None:
    response = failing(errors.OverloadedError("full", 2.1)).test_client().get("/fail")
    assert response.status_code == 429
    assert error_of(response)["message"] == "full"
    assert response.headers["Retry-After"] == "3"
    assert response.headers["x-should-retry"] == "true"


def test_a_client_is_told_not_to_repeat_what_would_fail_again() -> None:
    response = failing(errors.AudioDecodeError("noise")).test_client().get("/fail")
    assert response.headers["x-should-retry"] == "false"
    assert "Retry-After" not in response.headers


def test_an_unforeseen_error_is_told_to_the_log_only(caplog: pytest.LogCaptureFixture) -> None:
    response = failing(RuntimeError("the password is sesame")).test_client().get("/fail")
    assert response.status_code == 500
    assert error_of(response)["code"] == "internal_error"
    assert "sesame" not in response.text
    (record,) = (record for record in caplog.records if record.levelno == logging.ERROR)
    assert record.exc_info
    assert "sesame" in str(record.exc_info[1])


@pytest.mark.parametrize("error", [errors.UnavailableError("loading"), errors.DeadlineExceeded("late")])
def test_what_is_no_fault_of_ours_is_not_logged_as_one(caplog: pytest.LogCaptureFixture, error: Exception) -> None:
    assert failing(error).test_client().get("/fail").status_code >= 500
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_page_that_is_not_there_is_named(client: FlaskClient) -> None:
    response = client.get("/transcript")
    assert response.status_code == 404
    error = error_of(response)
    assert error["code"] == "not_found"
    assert "'/transcript'" in error["message"]


def test_a_long_path_is_not_repeated_in_full(client: FlaskClient) -> None:
    assert len(client.get(f"/{'x' * 3000}").text) < 500


def test_a_method_that_cannot_be_used_comes_with_those_that_can(client: FlaskClient) -> None:
    response = client.get("/transcribe")
    assert response.status_code == 405
    assert "POST" in response.headers["Allow"]
    error = error_of(response)
    assert error["code"] == "method_not_allowed"
    assert "GET" in error["message"]
    assert "POST" in error["message"]


def test_every_path_refuses_a_method_that_it_has_not_in_the_same_shape() -> None:
    app = bare_app()
    for rule in app.url_map.iter_rules():
        path = re.sub(r"<[^>]+>", "x", rule.rule)
        response = app.test_client().patch(path)
        assert response.status_code == 405, path
        assert error_of(response)["code"] == "method_not_allowed", path
        methods = [one.methods or set() for one in app.url_map.iter_rules() if one.rule == rule.rule]
        assert set(response.allow) == set[str]().union(*methods), path


def test_every_path_tells_nothing_of_an_unforeseen_error(caplog: pytest.LogCaptureFixture) -> None:
    def fail(**_: object) -> str:
        raise RuntimeError("the password is sesame")

    app, key = bare_app(admin_keys="simsalabim"), {"Authorization": "Bearer simsalabim"}
    for rule in app.url_map.iter_rules():
        app.view_functions[rule.endpoint] = fail
    for rule in app.url_map.iter_rules():
        path = re.sub(r"<[^>]+>", "x", rule.rule)
        method = "POST" if "POST" in (rule.methods or ()) else "GET"
        response = app.test_client().open(path, method=method, headers=key)
        assert response.status_code == 500, path
        assert error_of(response)["code"] == "internal_error", path
        assert "sesame" not in response.text, path
    assert "sesame" in caplog.text


def test_a_body_over_the_limit_is_told_the_limit(client: FlaskClient) -> None:
    response = client.post("/form", data={"file": (io.BytesIO(bytes(1_000_001)), "a.wav")})
    assert response.status_code == 413
    error = error_of(response)
    assert error["code"] == "request_entity_too_large"
    assert error["message"] == f"the body has {response.request.content_length} bytes: send at most 1000000"


@pytest.mark.parametrize("fields", [{f"field{number}": "x" for number in range(201)}, {"field": "x" * 600_000}])
def test_a_form_over_its_limits_is_told_them(fields: dict[str, str]) -> None:
    app = failing(ZeroDivisionError())
    app.config["MAX_FORM_MEMORY_SIZE"] = 500_000
    response = app.test_client().post("/form", data=fields, content_type="multipart/form-data")
    assert response.status_code == 413
    assert "200 fields" in error_of(response)["message"]
    assert "500000 bytes" in error_of(response)["message"]


def test_a_bad_request_that_flask_finds_has_the_same_shape(client: FlaskClient) -> None:
    response = client.post("/json", data="{", content_type="application/json")
    assert response.status_code == 400
    assert error_of(response)["code"] == "bad_request"
