"""Server-sent events as they stand on the line."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
from flask import Flask, g

from whisperlib.errors import AudioDecodeError, UnavailableError
from whisperlib.web import stream


class Events:
    """Events that record whether they were closed."""

    def __init__(self, *events: object) -> None:
        self._events = iter(events)
        self.closed = False

    def __iter__(self) -> Iterator[object]:
        return self

    def __next__(self) -> object:
        event = next(self._events)
        if isinstance(event, Exception):
            raise event
        return event

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def app() -> Flask:
    """An application without a model: the framing needs none."""
    return Flask("stream")


def answer(app: Flask, events: Events, **keywords: str | None) -> str:
    with app.test_request_context():
        response = stream.respond(events, stream.event, **keywords)
        text = response.get_data(as_text=True)
        response.close()
    return text


def test_an_event_is_json_on_one_line_whatever_its_text_holds() -> None:
    written = stream.event({"text": "one\ntwo\r\nthree\u2028four"}, "segment")
    name, data, *rest = written.split("\n")
    assert name == "event: segment"
    assert json.loads(data.removeprefix("data: ")) == {"text": "one\ntwo\r\nthree\u2028four"}
    assert rest == ["", ""]
    assert stream.event({"a": 1}) == 'data: {"a": 1}\n\n'


def test_a_keep_alive_is_a_comment() -> None:
    assert stream.KEEP_ALIVE.startswith(":")
    assert stream.KEEP_ALIVE.endswith("\n\n")


def test_a_stream_is_neither_cached_nor_collected(app: Flask) -> None:
    with app.test_request_context():
        headers = stream.respond(Events(), stream.event).headers
    assert headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert headers["Cache-Control"] == "no-cache"
    assert headers["X-Accel-Buffering"] == "no"
    assert "Content-Length" not in headers


def test_events_come_in_order_and_are_closed_at_the_end(app: Flask) -> None:
    events = Events(1, 2)
    assert answer(app, events) == "data: 1\n\ndata: 2\n\n"
    assert events.closed


def test_events_that_nobody_reads_are_closed_too(app: Flask) -> None:
    events = Events(1, 2)
    with app.test_request_context():
        stream.respond(events, stream.event).close()
    assert events.closed


def test_a_client_that_leaves_is_written_down(app: Flask) -> None:
    events = Events(1, 2)
    with app.test_request_context():
        response = stream.respond(events, stream.event)
        assert next(response.iter_encoded()) == b"data: 1\n\n"
        response.close()
        assert g.record["error"] == "client_gone"
    assert events.closed


def test_an_error_becomes_the_last_event_with_the_body_of_an_answer(app: Flask) -> None:
    events = Events(1, AudioDecodeError("not audio"), 2)
    body = {"error": {"message": "not audio", "type": "invalid_request_error", "param": None, "code": "invalid_audio"}}
    assert answer(app, events) == f"data: 1\n\nevent: error\ndata: {json.dumps(body)}\n\n"
    assert answer(app, Events(AudioDecodeError("not audio")), error_name=None) == f"data: {json.dumps(body)}\n\n"


def test_an_unforeseen_error_is_logged_and_tells_the_client_nothing(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    text = answer(app, Events(ZeroDivisionError("a secret")))
    assert "a secret" not in text
    assert json.loads(text.split("data: ")[1])["error"]["code"] == "internal_error"
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert caplog.records[0].exc_info


def test_a_server_that_stops_is_no_error_in_the_log(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    assert "the server is stopping" in answer(app, Events(UnavailableError("the server is stopping")))
    assert not caplog.records
