"""`POST /transcribe`: audio in, its text out, at once or as it comes."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify

from whisperlib import formats
from whisperlib.results import Segment
from whisperlib.web import intake, running, schemas, stream, text
from whisperlib.web.errors import ApiError
from whisperlib.web.intake import Asked
from whisperlib.web.openapi import describe
from whisperlib.web.running import Event, Outcome

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
    """
    with running.admitted() as admission, intake.asked() as asked:
        _check(asked, served_model=admission.adapter.config.model)
        if asked.stream:
            return stream.respond(running.stream(asked.audio, asked.options), lambda event: _line(event, asked))
        return _answer(running.transcribe(asked.audio, asked.options), asked)


def _check(asked: Asked, served_model: str) -> None:
    if asked.model not in {None, served_model}:
        message = f"the model {asked.model!r} is not served here: leave it out, or give {served_model!r}"
        raise ApiError(404, message, code="model_not_found", param="model")
    if asked.stream and asked.response_format not in JSON_FORMATS:
        message = f"a stream has no {asked.response_format}: take {' or '.join(JSON_FORMATS)}, or do without stream"
        raise ApiError(400, message, code="invalid_option", param="response_format")


def _answer(outcome: Outcome, asked: Asked) -> Response:
    if asked.response_format in JSON_FORMATS:
        return jsonify(_json(outcome, asked))
    return text.respond(outcome.result, asked.response_format)


def _line(event: Event, asked: Asked) -> str:
    if isinstance(event, Segment):
        return stream.event(schemas.segment(event, words=asked.options.word_timestamps), "segment")
    if isinstance(event, Outcome):
        return stream.event(_json(event, asked), "result")
    return stream.event({"progress": round(event.fraction, 3)}, "progress")


def _json(outcome: Outcome, asked: Asked) -> dict[str, object]:
    return schemas.answer(outcome, verbose=asked.response_format == "verbose_json", words=asked.options.word_timestamps)
