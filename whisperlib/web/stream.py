"""Answers that come as server-sent events."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from flask import Response, g

from whisperlib.web.errors import problem_of

logger = logging.getLogger(__name__)

T = TypeVar("T")

MIME_TYPE = "text/event-stream"
KEEP_ALIVE = ": keep-alive\n\n"  # a comment, which every client skips


def event(data: Any, name: str | None = None) -> str:
    """Write one event: `data` as JSON on one line, under `name` if it has one."""
    line = f"data: {json.dumps(data)}\n\n"
    return f"event: {name}\n{line}" if name else line


def respond(events: Iterator[T], write: Callable[[T], str], *, error_name: str | None = "error") -> Response:
    """Answer with `write` of each of `events`, as `event` and `KEEP_ALIVE` make them.

    An exception becomes a last event `error_name` with the body that an answer of its own would have. `events` is
    closed when the client has gone, too.
    """
    record = g.setdefault("record", {})

    def lines() -> Iterator[str]:
        try:
            for one in events:
                yield write(one)
        except GeneratorExit:
            record["error"] = "client_gone"
            raise
        except Exception as error:
            problem = problem_of(error)
            record["error"] = problem.code
            if problem.status >= 500 and not problem.retry:
                logger.error("%s", problem.message, exc_info=error)
            yield event(problem.body(), error_name)

    response = Response(lines(), mimetype=MIME_TYPE)
    response.headers["Cache-Control"] = "no-cache"
    response.headers["X-Accel-Buffering"] = "no"  # nginx would collect the events
    if close := getattr(events, "close", None):
        response.call_on_close(close)
    return response
