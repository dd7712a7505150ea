"""`POST /transcribe`: audio in, its text out, at once or as it comes."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify

from whisperlib import formats
from whisperlib.enhance import Enhancement
from whisperlib.results import Segment
from whisperlib.web import enhancing, intake, running, schemas, stream, text
from whisperlib.web.enhancing import Delta, KeepAlive
from whisperlib.web.errors import ApiError
from whisperlib.web.intake import Asked
from whisperlib.web.openapi import describe
from whisperlib.web.running import Event, Outcome, Progress

JSON_FORMATS = ("json", "verbose_json")

routes = Blueprint("transcribe", __name__)


@routes.post("/transcribe")
@describe(
    tag="Transcription",
    parameters=schemas.Parameters,
    request={
        "application/json": schemas.Parameters,
        "multipart/form-data": schemas.Form,
        "application/x-www-form-urlencoded": schemas.Parameters,
        "audio/*": None,
    },
    answers={
        200: {
            **{media_type: {"type": "string"} for media_type in formats.MEDIA_TYPES.values()},
            "application/json": schemas.Answer,
            stream.MIME_TYPE: None,
        }
    },
)
def transcribe() -> Response:
    """Transcribe audio.

    The audio is uploaded, as `file` of a multipart form or as the body, or fetched from `audio_url`. Options stand
    where the audio or its address does, or in the query string; each may be given once.

    With `stream`, or if the client accepts `text/event-stream`, the answer comes as server-sent events: `progress`
    with the fraction done, `segment` as soon as each is settled, and last `result` with the whole answer, or `error`.
    Where the text is cleaned up, `enhancement.delta` follows as it is produced, and `enhancement.done`.
    """
    with running.admitted() as admission, intake.asked() as asked:
        _check(asked)
        admission.use(
            asked.model,
            keep_alive_seconds=asked.keep_alive_seconds,
            max_wait_seconds=asked.options.max_wait_seconds,
        )
        clean_up = enhancing.plan(admission, asked.options, asked.enhance) if _has_json(asked) else None
        if asked.stream:
            events = running.stream(asked.audio, asked.options)
            return stream.respond(clean_up.follow(events) if clean_up else events, lambda event: _line(event, asked))
        outcome = running.transcribe(asked.audio, asked.options)
        return _answer(outcome, asked, clean_up.run(outcome) if clean_up else None)


def _check(asked: Asked) -> None:
    if asked.stream and not _has_json(asked):
        message = f"a stream has no {asked.response_format}: take {' or '.join(JSON_FORMATS)}, or do without stream"
        raise ApiError(400, message, code="invalid_option", param="response_format")


def _has_json(asked: Asked) -> bool:
    return asked.response_format in JSON_FORMATS


def _answer(outcome: Outcome, asked: Asked, enhancement: Enhancement | None) -> Response:
    if _has_json(asked):
        return jsonify(_json(outcome, asked, enhancement))
    return text.respond(outcome.result, asked.response_format)


def _line(event: Event | Delta | KeepAlive | Enhancement, asked: Asked) -> str:
    if isinstance(event, Segment):
        return stream.event(schemas.segment(event, words=asked.options.word_timestamps), "segment")
    if isinstance(event, Outcome):
        return stream.event(_json(event, asked), "result")
    if isinstance(event, Progress):
        return stream.event({"progress": round(event.fraction, 3)}, "progress")
    if isinstance(event, Delta):
        return stream.event({"text": event.text}, "enhancement.delta")
    if isinstance(event, Enhancement):
        done = {**schemas.clean_up(event), "seconds": round(event.seconds, 4)}
        return stream.event(done, "enhancement.done")
    return stream.KEEP_ALIVE


def _json(outcome: Outcome, asked: Asked, enhancement: Enhancement | None = None) -> dict[str, object]:
    return schemas.answer(
        outcome,
        verbose=asked.response_format == "verbose_json",
        words=asked.options.word_timestamps,
        enhancement=enhancement,
    )
