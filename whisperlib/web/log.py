"""Request ids, and one line in the log for every request at its very end."""

from __future__ import annotations

import json
import logging
import re
import secrets
import sys
import time
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import datetime, timezone
from typing import Any

from flask import Flask, Response, g, request

from whisperlib.settings import Settings
from whisperlib.web.errors import CLIENT_CLOSED_REQUEST

logger = logging.getLogger("whisperlib.web.request")

PROBES = ("/health", "/ready", "/metrics")
REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)

_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


def configure(settings: Settings) -> None:
    """Have the whole process log to stderr, in the format and from the level that the settings say."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_add_request_id)
    handler.setFormatter(_Json() if settings.log_format == "json" else _Text())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    level = logging.INFO if settings.log_level == "auto" else getattr(logging, settings.log_level)
    logging.getLogger("whisperlib").setLevel(level)
    # What native code calls an error is in the exception that it ends in, or is a stop that was asked for.
    logging.getLogger("whisperlib.native").setLevel(level if level <= logging.DEBUG else logging.CRITICAL)


def register(app: Flask) -> None:
    """Give every request an id and a line."""
    app.before_request(_begin)
    app.after_request(_end)


def _begin() -> None:
    given = request.headers.get("x-request-id", "")
    g.request_id = given if _SANE_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
    g.started = time.monotonic()
    g.record = {}
    # Not reset: the next request of this thread sets its own, and a stream's last lines come after the view.
    REQUEST_ID.set(g.request_id)


def _end(response: Response) -> Response:
    """Add the headers; the line is written when the answer is closed, which a stream is after the view."""
    response.headers["x-request-id"] = g.request_id
    response.headers["openai-processing-ms"] = str(round((time.monotonic() - g.started) * 1000))
    if "cache" in g.record:
        response.headers["X-Whisper-Cache"] = g.record["cache"]
    line: dict[str, Any] = {
        "request_id": g.request_id,
        "client": request.remote_addr,
        "method": request.method,
        "path": request.url_rule.rule if request.url_rule else request.path[:200],
        "status": None,  # known at the end
        "bytes_in": request.content_length,
    }
    record, started = g.record, g.started
    level = logging.DEBUG if request.path in PROBES else logging.INFO

    def write() -> None:
        line["status"] = final_status(response, record)
        fields = {**line, "milliseconds": (time.monotonic() - started) * 1000, **record}
        logger.log(level, "request", extra={"fields": fields})

    response.call_on_close(write)
    return response


def final_status(response: Response, record: Mapping[str, Any]) -> int:
    """Return what became of a closed answer: the status it began with, or that its client went away meanwhile."""
    return CLIENT_CLOSED_REQUEST if record.get("error") == "client_gone" else response.status_code


def _add_request_id(record: logging.LogRecord) -> bool:
    record.request_id = REQUEST_ID.get()
    return True


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", None) or {"request_id": getattr(record, "request_id", None)}
    return {
        name: round(value, 4) if isinstance(value, float) else value
        for name, value in fields.items()
        if value is not None
    }


class _Text(logging.Formatter):
    """`2026-01-31 12:00:00,000 INFO request method=POST …`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        fields = (f"{name}={_word(value)}" for name, value in _fields(record).items())
        head, *traceback = super().format(record).split("\n")
        return "\n".join([" ".join([head, *fields]), *traceback])


class _Json(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False, default=str)


def _word(value: object) -> str:
    text = str(value)
    return text if re.fullmatch(r"[\w./:+<>-]+", text) else json.dumps(text)
