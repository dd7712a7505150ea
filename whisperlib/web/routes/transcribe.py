"""`POST /transcribe`: audio in, its text out, at once or as it comes."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify

from whisperlib import formats
from whisperlib.enhance import Enhancement
from whisperlib.results import Segment
from whisperlib.web import enhancing, intake, kept, running, schemas, stream, text
from whisperlib.web.enhancing import CleanUp, EnhancementEvent
from whisperlib.web.errors import ApiError
from whisperlib.web.intake import Asked
from whisperlib.web.openapi import describe
from whisperlib.web.running import Event, Outcome, Progress

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

    The server keeps an answer of JSON for a while, under its `id`.
    """
    with running.admitted() as admission, intake.asked() as asked:
        _check(asked)
        admission.use(
            asked.model,
            keep_alive_seconds=asked.keep_alive_seconds,
            max_wait_seconds=asked.options.max_wait_seconds,
        )
        if not _has_json(asked):
            outcome = running.transcribe(asked.audio, asked.options)
            return text.respond(outcome.result, asked.response_format)
        clean_up = enhancing.plan(admission, asked.enhance, asked.options.timeout_seconds)
        if asked.stream:
            return _stream(asked, clean_up)
        outcome = running.transcribe(asked.audio, asked.options)
        enhancement = clean_up.run(outcome.result, outcome.total_seconds) if clean_up else None
        kept_as = kept.current().add(outcome, words=asked.options.word_timestamps, enhancement=enhancement)
        return jsonify(_json(outcome, asked, kept_as, enhancement))


def _check(asked: Asked) -> None:
    if asked.stream and not _has_json(asked):
        message = (
            f"a stream has no {asked.response_format}: take {' or '.join(schemas.JSON_FORMATS)}, or do without stream"
        )
        raise ApiError(400, message, code="invalid_option", param="response_format")


def _has_json(asked: Asked) -> bool:
    return asked.response_format in schemas.JSON_FORMATS


def _stream(asked: Asked, clean_up: CleanUp | None) -> Response:
    results = kept.current()
    kept_as: str | None = None

    def write(event: Event | EnhancementEvent) -> str:
        nonlocal kept_as
        if isinstance(event, Segment):
            return stream.event(schemas.segment(event, words=asked.options.word_timestamps), "segment")
        if isinstance(event, Progress):
            return stream.event({"progress": round(event.fraction, 3)}, "progress")
        if isinstance(event, Outcome):
            kept_as = results.add(event, words=asked.options.word_timestamps)
            return stream.event(_json(event, asked, kept_as), "result")
        if kept_as and isinstance(event, Enhancement):
            results.enhance(kept_as, event)
        return enhancing.line(event)

    events = running.stream(asked.audio, asked.options)
    return stream.respond(clean_up.follow(events) if clean_up else events, write)


def _json(
    outcome: Outcome, asked: Asked, kept_as: str | None, enhancement: Enhancement | None = None
) -> dict[str, object]:
    return schemas.answer(
        outcome,
        kept_as=kept_as,
        verbose=asked.response_format == "verbose_json",
        words=asked.options.word_timestamps,
        enhancement=enhancement,
    )
