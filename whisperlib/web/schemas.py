"""What `POST /transcribe` takes and gives, as pydantic models: they check it, and they document it."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from whisperlib import formats, results
from whisperlib.enhance import Enhancement, Mode, Status
from whisperlib.options import TranscribeOptions
from whisperlib.settings import MAX_KEEP_ALIVE_SECONDS
from whisperlib.web.running import Outcome

SERVER_OPTIONS = ("threads", "background", "cancel", "progress")  # a client may not set them
Format = Literal["json", "verbose_json", "text", "srt", "vtt", "tsv"]
JSON_FORMATS: tuple[Format, ...] = ("json", "verbose_json")


def nested(annotation: Any) -> type[BaseModel] | None:
    """Return the annotation of a field that has fields of its own, None for any other."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


@cache
def twin(model: type[BaseModel], leave_out: tuple[str, ...] = ()) -> type[BaseModel]:
    """Make a model with the fields of `model` which, unlike it, can be told how strictly to convert types."""
    fields: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if name not in leave_out:
            inner = nested(field.annotation)
            fields[name] = (twin(inner) if inner else field.annotation, field)
    config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())
    return pydantic.create_model(model.__name__, __config__=config, __doc__=model.__doc__, **fields)


Parameters = pydantic.create_model(
    "Parameters",
    __base__=twin(TranscribeOptions, SERVER_OPTIONS),
    __doc__="All that a client may say beside the audio itself; what is left out has its default.",
    audio_url=(str | None, Field(None, description="Where the server fetches the audio: http or https.")),
    model=(str | None, Field(None, description="Name of a model that is served; left out or 'auto': the default.")),
    keep_alive=(
        float | None,
        Field(
            None,
            ge=0,
            le=MAX_KEEP_ALIVE_SECONDS,
            description="Seconds that the model stays loaded unused after this request; 0: until its memory is needed; "
            "left out: as the server keeps it.",
        ),
    ),
    response_format=(Format, Field("json", description="How the answer is written.")),
    stream=(bool, Field(False, description="Answer with server-sent events while the work goes on.")),
    enhance=(
        Mode | None,
        Field(
            None,
            description="Clean the text up by a language model: `auto` where the Whisper model is a small one; "
            "left out: `auto` where the server has a language model, else `never`.",
        ),
    ),
)

Form = pydantic.create_model(
    "Form",
    __base__=Parameters,
    __doc__="A multipart form: the audio as `file`, or an `audio_url`.",
    file=(bytes | None, Field(None, description="The audio, in any common format.")),
)


class _Few(BaseModel):
    model_config = ConfigDict(extra="forbid")


class KeptParameters(_Few):
    """How a result is told again."""

    response_format: Format = Field("json", description="How the answer is written.")


class EnhanceParameters(_Few):
    """Whether a result's text is cleaned up."""

    enhance: Literal["auto", "always"] = Field(
        "always", description="Clean the text up in any case, or with `auto` where the Whisper model is a small one."
    )


class _Answer(BaseModel):
    model_config = ConfigDict(protected_namespaces=())


class Word(_Answer):
    """A word; times are seconds, `probability` is 0 to 1."""

    word: str
    start: float | None
    end: float | None
    probability: float | None


class Segment(_Answer):
    """A stretch of speech; times are seconds. `words` are there in a stream, if they were asked for."""

    id: int
    start: float | None
    end: float | None
    text: str
    words: list[Word] | None = None


class VerboseSegment(Segment):
    """A segment with what the model made of it, as OpenAI's API names it."""

    seek: int
    tokens: list[int]
    temperature: float | None
    avg_logprob: float | None
    compression_ratio: float | None
    no_speech_prob: float | None


class CleanUp(_Answer):
    """What a language model made of the text. `text` is null unless `status` is `enhanced`; `reason` says why."""

    status: Status
    text: str | None
    reason: str | None
    model: str | None


class Timings(_Answer):
    """Where the time went, in seconds. `total` counts from when the upload was there; `enhance` is the clean-up."""

    fetch: float
    decode: float
    queue: float
    vad: float
    inference: float
    total: float
    enhance: float | None = None


class Answer(_Answer):
    """A transcription.

    `id` is there where the server keeps it, to be asked for at `/transcriptions/{transcription_id}`.
    `language` is a code, null where there was no speech; `duration` the length of the audio in seconds; `words` is
    there if they were asked for; `complete` is false where a deadline cut it short and `on_interrupt` is `partial`.
    `task` is there in `verbose_json`, whose segments tell more; `cached` where there is a cache: whether the model did
    not run for this request. `enhancement` is there where a clean-up was asked for, or is the server's default; the
    other texts are always the transcript's own.
    """

    id: str | None = None
    text: str
    language: str | None
    duration: float
    segments: list[VerboseSegment | Segment]
    words: list[Word] | None = None
    model: str
    task: results.Task | None = None
    complete: bool
    cached: bool | None = None
    timings: Timings
    enhancement: CleanUp | None = None


class EnhanceTimings(_Answer):
    """The seconds that the clean-up took."""

    enhance: float


class Enhanced(_Answer):
    """The clean-up of a kept result, whose transcript is `text`."""

    id: str
    text: str
    enhancement: CleanUp
    timings: EnhanceTimings


def answer(
    outcome: Outcome,
    *,
    kept_as: str | None = None,
    verbose: bool = False,
    words: bool = False,
    enhancement: Enhancement | None = None,
) -> dict[str, Any]:
    """Return an outcome in the form of `Answer`, ready for JSON."""
    result, spent = outcome.result, outcome.result.timings
    seconds = {
        "fetch": outcome.fetch_seconds,
        "decode": spent.decode,
        "queue": spent.queue,
        "vad": spent.vad,
        "inference": spent.inference,
        "total": outcome.total_seconds,
    }
    fields: dict[str, Any] = {
        **({"id": kept_as} if kept_as else {}),
        "text": result.text,
        "language": result.language,
        "duration": round(result.duration, 3),
        "segments": [formats.segment_to_dict(one) if verbose else segment(one) for one in result.segments],
        "model": result.model,
        "complete": result.complete,
        "timings": {name: round(value, 4) for name, value in seconds.items()},
    }
    if result.cache != "off":
        fields["cached"] = result.cache != "miss"
    if verbose:
        fields["task"] = result.task
    if words:
        fields["words"] = [formats.word_to_dict(word) for word in result.words]
    if enhancement:
        total = round(outcome.total_seconds + enhancement.seconds, 4)
        fields["timings"] |= {"total": total, "enhance": round(enhancement.seconds, 4)}
        fields["enhancement"] = clean_up(enhancement)
    return fields


def clean_up(enhancement: Enhancement) -> dict[str, Any]:
    """Return an enhancement in the form of `CleanUp`, ready for JSON."""
    return {name: getattr(enhancement, name) for name in CleanUp.model_fields}


def segment(one: results.Segment, *, words: bool = False) -> dict[str, Any]:
    """Return a segment in the form of `Segment`, ready for JSON."""
    verbose = formats.segment_to_dict(one)
    fields = {name: verbose[name] for name in ("id", "start", "end", "text")}
    if words:
        fields["words"] = [formats.word_to_dict(word) for word in one.words]
    return fields
