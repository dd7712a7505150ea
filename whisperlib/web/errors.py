"""Exceptions → status and JSON in the shape of OpenAI's API: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

from flask import Flask, Response, current_app, g, jsonify, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound, RequestEntityTooLarge

from whisperlib import errors
from whisperlib.settings import MAX_SHOWN_CHARACTERS

logger = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499  # nginx's number for a client that went away; nobody reads the answer


class ApiError(errors.WhisperlibError):
    """A request that is wrong by itself. `param` is the field, `code` a word that a program can tell it by."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param


@dataclass(frozen=True, slots=True)
class Problem:
    """What a client is told. `retry` is False where the same request would fail again."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    retry: bool = False
    retry_after_seconds: float | None = None

    @property
    def kind(self) -> str:
        """OpenAI's word for the kind of error."""
        if self.status == 401:
            return "authentication_error"
        if self.status == 429:
            return "rate_limit_error"
        return "invalid_request_error" if self.status < 500 else "server_error"

    def body(self) -> dict[str, Any]:
        """Return the JSON body."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """Return the answer, with the headers that tell a client whether and when to try again."""
        response = jsonify(self.body())
        response.status_code = self.status
        response.headers["x-should-retry"] = "true" if self.retry else "false"
        if self.retry_after_seconds is not None:
            response.headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_seconds)))
        if self.status == 401:
            response.headers["WWW-Authenticate"] = "Bearer"
        return response


# The first class that fits counts: (class, status, code, whether it is worth trying again).
_TABLE: tuple[tuple[type[BaseException], int, str, bool], ...] = (
    (errors.OverloadedError, 429, "overloaded", True),
    (errors.UnavailableError, 503, "unavailable", True),
    (errors.ClosedError, 503, "unavailable", True),
    (errors.OptionError, 400, "invalid_option", False),
    (errors.AudioTooLongError, 413, "audio_too_long", False),
    (errors.AudioError, 400, "invalid_audio", False),
    (errors.UrlRefusedError, 400, "url_refused", False),
    (errors.FetchTooLargeError, 413, "body_too_large", False),
    (errors.FetchTimeoutError, 400, "url_timeout", False),
    (errors.FetchError, 400, "url_unreachable", False),
    (errors.BatchKeyTakenError, 409, "idempotency_conflict", False),
    (errors.BatchesFullError, 507, "batches_full", False),
    (errors.BatchStoreError, 503, "batches_unavailable", True),
    (errors.DeadlineExceeded, 504, "deadline_exceeded", False),
    (errors.TranscriptionCancelled, 503, "cancelled", True),
    (errors.MemoryBudgetError, 507, "memory_budget", False),
    (errors.ModelError, 500, "model_failed", False),
    (errors.OutOfMemoryError, 503, "out_of_memory", True),
    (errors.EngineCrashedError, 503, "engine_crashed", True),
    (errors.EngineError, 500, "engine_failed", False),
    (errors.WhisperlibError, 500, "internal_error", False),
)


def problem_of(error: BaseException) -> Problem:
    """Say what a client is told of `error`; of an unforeseen one, only that it happened."""
    if isinstance(error, ApiError):
        return Problem(error.status, str(error), error.code, error.param)
    if isinstance(error, HTTPException):
        status = error.code or 500
        return Problem(status, _explanation(error), error.name.lower().replace(" ", "_"))
    for kind, status, code, retry in _TABLE:
        if isinstance(error, kind):
            param = error.option if isinstance(error, errors.OptionError) else None
            after = error.retry_after_seconds if isinstance(error, errors.BusyError) else None
            return Problem(status, str(error), code, param, retry, after)
    return Problem(500, "an internal error; the server's log has it under this request's id", "internal_error")


def _explanation(error: HTTPException) -> str:
    """Say what Flask refused in this request, where it does not say enough itself."""
    if isinstance(error, RequestEntityTooLarge):
        most = current_app.config["MAX_CONTENT_LENGTH"]
        if (request.content_length or 0) > most:
            return f"the body has {request.content_length} bytes: send at most {most}"
        fields, memory = current_app.config["MAX_FORM_PARTS"], current_app.config["MAX_FORM_MEMORY_SIZE"]
        return f"send at most {most} bytes; a form may have {fields} fields, and {memory} bytes in those without a file"
    if isinstance(error, NotFound):
        return f"there is nothing at {request.path[:MAX_SHOWN_CHARACTERS]!r}: / says where to go"
    if isinstance(error, MethodNotAllowed):
        allowed = ", ".join(sorted(error.valid_methods or ()))
        return f"{request.method[:MAX_SHOWN_CHARACTERS]} cannot be used here: use {allowed}"
    return error.description or error.name


def register(app: Flask) -> None:
    """Have every exception answered in this shape, on every path."""

    def answer(error: Exception) -> Response:
        problem = problem_of(error)
        g.setdefault("record", {})["error"] = problem.code
        if problem.status >= 500 and not isinstance(error, (errors.BusyError, errors.InterruptedTranscription)):
            logger.error("%s", problem.message, exc_info=error)
        response = problem.response()
        if isinstance(error, HTTPException):
            for name, value in error.get_headers():
                if name.lower() == "allow":
                    response.headers[name] = value
        return response

    app.register_error_handler(Exception, answer)
