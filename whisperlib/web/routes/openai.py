"""OpenAI's audio API: what its clients send, and what they expect."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, Literal, cast, get_args

from flask import Blueprint, Response, jsonify
from pydantic import BaseModel, Field, RootModel

from whisperlib import formats
from whisperlib.enhance import MODES, Enhancement, Mode
from whisperlib.options import MAX_PROMPT_CHARACTERS, Profile, TranscribeOptions, VadOptions
from whisperlib.results import Segment, Task
from whisperlib.web import enhancing, form, running, schemas, stream, text
from whisperlib.web.openapi import describe
from whisperlib.web.running import Event, Outcome
from whisperlib.web.service import OPENAI_ALIAS, current_service

routes = Blueprint("openai", __name__, url_prefix="/v1")

Format = Literal["json", "text", "srt", "verbose_json", "vtt"]
FORMATS = get_args(Format)
JSON_FORMATS: tuple[Format, ...] = ("json", "verbose_json")
# The names that clients know our options by.
FIELDS = {
    "profile": "profile",
    "initial_prompt": "prompt",
    "threshold": "chunking_strategy[threshold]",
    "pad_seconds": "chunking_strategy[prefix_padding_ms]",
    "min_silence_seconds": "chunking_strategy[silence_duration_ms]",
}


class TranslationForm(BaseModel):
    """What a translation is asked with."""

    file: bytes = Field(description="Audio in any format.", json_schema_extra={"format": "binary"})
    model: str = Field(OPENAI_ALIAS, description="Name of a model that is served; `whisper-1`: the default.")
    prompt: str | None = Field(None, description="Text that the model takes as said before; its end counts.")
    response_format: Format = Field("json", description="How the answer is written.")
    temperature: float = Field(0.0, ge=0, le=1, description="First decoding temperature; higher ones are a fallback.")
    profile: Profile | None = Field(None, description="Not OpenAI's: the profile; left out: the server's.")


class TranscriptionForm(TranslationForm):
    """What a transcription is asked with."""

    language: str | None = Field(None, description="Code or English name; left out: it is detected.")
    stream: bool = Field(False, description="Answer with server-sent events, each segment as soon as it is settled.")
    timestamp_granularities: list[str] = Field(
        ["segment"], alias="timestamp_granularities[]", description="`segment`, `word` or both, for verbose_json."
    )
    chunking_strategy: str | None = Field(
        None,
        description="`auto`, or an object of type server_vad with threshold, prefix_padding_ms, "
        "silence_duration_ms: how speech is found.",
    )
    keywords: list[str] = Field(
        [],
        alias="keywords[]",
        description="Words to expect; they go before the prompt, and with it to all of the audio.",
    )
    languages: list[str] = Field(
        [], alias="languages[]", description="One language is taken; of several it is detected."
    )
    include: list[str] = Field([], alias="include[]", description="`logprobs`: those of all tokens, with json.")
    enhance: Mode = Field("never", description="Not OpenAI's: clean the text up by a language model; not in a stream.")


class Usage(BaseModel):
    """What was used: seconds of audio."""

    type: str = "duration"
    seconds: float


class Logprob(BaseModel):
    """A token, its natural log probability, and its bytes: it may be a part of a character."""

    token: str
    logprob: float | None
    bytes: list[int]


class TranscriptionBase(BaseModel):
    """What every answer in JSON has; `enhancement` if it was asked for."""

    text: str
    usage: Usage
    enhancement: schemas.CleanUp | None = None


class TranscriptionJson(TranscriptionBase):
    """The text. `logprobs` are there if they were asked for."""

    logprobs: list[Logprob] | None = None


class TranscriptionVerbose(TranscriptionBase):
    """The text with its times, in seconds. Of `segments` and `words` that is null which was not asked for."""

    task: Task
    language: str
    duration: float
    segments: list[schemas.VerboseSegment] | None
    words: list[schemas.Word] | None


class TranscriptionAnswer(RootModel[TranscriptionJson | TranscriptionVerbose]):
    """The answer in `json` or `verbose_json`."""


class Model(BaseModel):
    """A model that may be asked for."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "whisperlib"


class ModelList(BaseModel):
    """The models that may be asked for."""

    object: str = "list"
    data: list[Model]


_ANSWERS = {
    200: {"application/json": TranscriptionAnswer, "text/plain": None, "text/vtt": None, "application/x-subrip": None}
}


@routes.post("/audio/transcriptions")
@describe(
    tag="OpenAI",
    request={"multipart/form-data": TranscriptionForm},
    answers={200: {**_ANSWERS[200], stream.MIME_TYPE: None}},
)
def transcriptions() -> Response:
    """Transcribe, as OpenAI's API does."""
    with running.admitted() as admission:
        audio = form.upload()
        response_format, granularities = _format(), _granularities()
        with_logprobs = _includes_logprobs(response_format)
        options = _options("transcribe", with_words="word" in granularities)
        streamed = form.flag("stream")
        if streamed and response_format not in {"json", "text"}:
            raise form.bad("response_format", response_format, "a stream is json, or text")
        mode = _enhance(streamed=bool(streamed))
        clean_up = enhancing.plan(admission, mode) if response_format in JSON_FORMATS else None
        admission.use(form.text("model"))
        if streamed:
            return _stream(running.stream(audio, options), with_logprobs=with_logprobs)
        outcome = running.transcribe(audio, options)
        enhancement = clean_up.run(outcome.result, outcome.total_seconds) if clean_up else None
        return _answer(outcome, response_format, granularities, with_logprobs=with_logprobs, enhancement=enhancement)


@routes.post("/audio/translations")
@describe(tag="OpenAI", request={"multipart/form-data": TranslationForm}, answers=_ANSWERS)
def translations() -> Response:
    """Translate into English, as OpenAI's API does."""
    with running.admitted() as admission:
        audio = form.upload()
        response_format = _format()
        options = _options("translate", with_words=False)
        admission.use(form.text("model"))
        return _answer(running.transcribe(audio, options), response_format, ("segment",))


@routes.get("/models")
@describe(tag="OpenAI", answers={200: {"application/json": ModelList}})
def models() -> Response:
    """List the models that may be asked for."""
    return jsonify(ModelList(data=_models()).model_dump())


@routes.get("/models/<path:model_id>")
@describe(tag="OpenAI", answers={200: {"application/json": Model}})
def model(model_id: str) -> Response:
    """Tell of one model."""
    for one in _models():
        if one.id == model_id:
            return jsonify(one.model_dump())
    raise current_service().no_such_model(model_id)


def _models() -> list[Model]:
    service = current_service()
    service.check_ready()
    served = service.served()
    files = {**served, OPENAI_ALIAS: served.get(service.default_name)}
    return [Model(id=name, created=int(path.stat().st_mtime)) for name, path in files.items() if path]


def _format() -> str:
    asked = form.text("response_format")
    if asked == "diarized_json":
        raise form.bad("response_format", asked, f"speakers are not told apart here: give one of {', '.join(FORMATS)}")
    return form.choice("response_format", FORMATS)


def _granularities() -> tuple[str, ...]:
    asked = tuple(form.texts("timestamp_granularities"))
    name = "timestamp_granularities"
    for one in asked:
        if one not in formats.GRANULARITIES:
            raise form.bad(name, one, f"give {' or '.join(formats.GRANULARITIES)}")
    if "word" in asked and form.text("response_format") != "verbose_json":
        raise form.bad(name, "word", "words come with response_format=verbose_json only")
    return asked or ("segment",)


def _includes_logprobs(response_format: str) -> bool:
    if "logprobs" not in form.texts("include"):
        return False
    if response_format != "json":
        raise form.bad("include", "logprobs", "log probabilities come with response_format=json only")
    return True


def _enhance(*, streamed: bool) -> Mode:
    asked = cast(Mode, form.choice("enhance", MODES))
    if streamed and asked != "never":
        raise form.bad("enhance", asked, "a stream is not cleaned up: leave one of them out")
    return asked


def _options(task: Task, *, with_words: bool) -> TranscribeOptions:
    form.log_unknown(TranscriptionForm.model_fields)
    keywords = ", ".join(word for keyword in form.texts("keywords") if (word := keyword.strip()))
    with form.complaints_about(FIELDS):
        given: dict[str, Any] = {
            "task": task,
            "language": _language(),
            "initial_prompt": _prompt(keywords),
            "carry_initial_prompt": bool(keywords),
            "temperature": form.number("temperature"),
            "word_timestamps": with_words,
            "profile": form.text("profile"),
            "vad_options": _vad(),
        }
        return TranscribeOptions(**{name: value for name, value in given.items() if value is not None})


def _language() -> str | None:
    several = form.texts("languages")
    return form.text("language") or (several[0] if len(several) == 1 else None)


def _prompt(keywords: str) -> str:
    """Put the keywords before the prompt, and cut the prompt's front off where that is too long."""
    prompt = form.prompt("prompt") or ""
    if not keywords:
        return prompt
    keywords = f"{keywords[: MAX_PROMPT_CHARACTERS // 2]}. "
    return keywords + prompt[-(MAX_PROMPT_CHARACTERS - len(keywords)) :]


def _vad() -> VadOptions | None:
    strategy = form.nested("chunking_strategy")
    if strategy is None or strategy == "auto":
        return None
    if not isinstance(strategy, dict) or strategy.get("type") != "server_vad":
        raise form.bad("chunking_strategy", strategy, "give auto, or an object of type server_vad")
    names = {"threshold": 1.0, "prefix_padding_ms": 1000.0, "silence_duration_ms": 1000.0}
    try:
        threshold, padding, silence = (
            float(strategy[name]) / unit if name in strategy else None for name, unit in names.items()
        )
    except ValueError:
        raise form.bad("chunking_strategy", strategy, f"give numbers for {', '.join(names)}") from None
    chosen = {"threshold": threshold, "pad_seconds": padding, "min_silence_seconds": silence}
    return VadOptions(**{name: value for name, value in chosen.items() if value is not None})


def _answer(
    outcome: Outcome,
    response_format: str,
    granularities: tuple[str, ...],
    *,
    with_logprobs: bool = False,
    enhancement: Enhancement | None = None,
) -> Response:
    result = outcome.result
    if response_format not in JSON_FORMATS:
        return text.respond(result, response_format)
    told = formats.to_dict(result, response_format == "verbose_json", granularities)
    told |= {**_logprobs(result.segments, told=with_logprobs), "usage": _usage(outcome)}
    return jsonify(told | {"enhancement": schemas.clean_up(enhancement)} if enhancement else told)


def _logprobs(segments: Iterable[Segment], *, told: bool) -> dict[str, Any]:
    return {"logprobs": [one for segment in segments for one in formats.logprobs_to_list(segment)]} if told else {}


def _usage(outcome: Outcome) -> dict[str, Any]:
    return Usage(seconds=math.ceil(outcome.result.duration)).model_dump()


def _stream(events: Iterator[Event], *, with_logprobs: bool = False) -> Response:
    seen_text = False

    def write(event: Event) -> str:
        nonlocal seen_text
        line = _line(event, first=not seen_text, with_logprobs=with_logprobs)
        seen_text = seen_text or (isinstance(event, Segment) and bool(event.text))
        return line

    return stream.respond(events, write, error_name=None)


def _line(event: Event, *, first: bool, with_logprobs: bool) -> str:
    if isinstance(event, Segment):
        told = formats.segment_to_dict(event)
        # Without a speaker typed clients cannot read it, though nobody is told apart here.
        place = {"id": f"seg_{event.id}", **{name: told[name] for name in ("start", "end", "text")}, "speaker": ""}
        delta = event.text if first else event.separator + event.text
        said = {"type": "transcript.text.delta", "delta": delta, **_logprobs([event], told=with_logprobs)}
        lines = [stream.event(said)] if event.text else []
        return "".join([*lines, stream.event({"type": "transcript.text.segment", **place})])
    if isinstance(event, Outcome):
        logprobs = _logprobs(event.result.segments, told=with_logprobs)
        done = {"type": "transcript.text.done", "text": event.result.text, **logprobs, "usage": _usage(event)}
        return f"{stream.event(done)}data: [DONE]\n\n"
    return f": progress {event.fraction:.3f}\n\n"
