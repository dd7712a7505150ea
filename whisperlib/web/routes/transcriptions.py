"""`/transcriptions/{id}`: a result again, in another format, cleaned up afterwards, or forgotten."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify

from whisperlib import formats
from whisperlib.enhance import Enhancement
from whisperlib.web import enhancing, intake, kept, running, schemas, stream, text
from whisperlib.web.enhancing import CleanUp, EnhancementEvent
from whisperlib.web.kept import KeptResult
from whisperlib.web.openapi import describe
from whisperlib.web.running import Admission

routes = Blueprint("transcriptions", __name__, url_prefix="/transcriptions/<transcription_id>")


@routes.get("")
@describe(
    tag="Kept results",
    parameters=schemas.KeptParameters,
    answers={
        200: {
            **{media_type: {"type": "string"} for media_type in formats.MEDIA_TYPES.values()},
            "application/json": schemas.Answer,
        }
    },
)
def tell(transcription_id: str) -> Response:
    """Give a transcription again.

    The answer is that of `POST /transcribe`, in any of its formats, with the clean-up that there has been since.
    """
    asked = intake.fields(schemas.KeptParameters)
    found = kept.current().get(transcription_id)
    if asked.response_format in schemas.JSON_FORMATS:
        response = jsonify(
            schemas.answer(
                found.outcome,
                kept_as=found.id,
                verbose=asked.response_format == "verbose_json",
                words=found.words,
                enhancement=found.enhancement,
            )
        )
    else:
        response = text.respond(found.outcome.result, asked.response_format)
    response.headers["Cache-Control"] = "no-store"  # what is forgotten here shall lie nowhere else
    return response


@routes.delete("")
@describe(tag="Kept results", answers={204: {}})
def forget(transcription_id: str) -> Response:
    """Forget a transcription."""
    kept.current().forget(transcription_id)
    return Response(status=204)


@routes.post("/enhance")
@describe(
    tag="Kept results",
    parameters=schemas.EnhanceParameters,
    request={"application/json": schemas.EnhanceParameters},
    answers={200: {"application/json": schemas.Enhanced}},
)
def enhance(transcription_id: str) -> Response:
    """Clean a transcription's text up by the language model, now.

    It works while the Whisper model is being loaded, too. The clean-up is kept with the transcription; one that fails
    takes the place of none that did not.
    """
    with running.admitted(needs_model=False) as admission:
        found, clean_up = _asked(admission, transcription_id)
        enhancement = clean_up.run(found.outcome.result)
        kept.current().enhance(found.id, enhancement)
        return jsonify(
            {
                "id": found.id,
                "text": found.outcome.result.text,
                "enhancement": schemas.clean_up(enhancement),
                "timings": {"enhance": round(enhancement.seconds, 4)},
            }
        )


@routes.get("/enhance-stream")
@describe(tag="Kept results", parameters=schemas.EnhanceParameters, answers={200: {stream.MIME_TYPE: None}})
def enhance_stream(transcription_id: str) -> Response:
    """Clean a transcription's text up by the language model, and stream it.

    The answer comes as server-sent events, those of a stream of `POST /transcribe`: `enhancement.delta` with the text
    as it is produced, and last `enhancement.done`. To close the connection ends the work.
    """
    with running.admitted(needs_model=False) as admission:
        found, clean_up = _asked(admission, transcription_id)
        results = kept.current()

        def write(event: EnhancementEvent) -> str:
            if isinstance(event, Enhancement):
                results.enhance(found.id, event)
            return enhancing.line(event)

        return stream.respond(clean_up.stream(found.outcome.result), write)


def _asked(admission: Admission, transcription_id: str) -> tuple[KeptResult, CleanUp]:
    asked = intake.fields(schemas.EnhanceParameters)
    return kept.current().get(transcription_id), enhancing.prepare(admission, asked.enhance)
