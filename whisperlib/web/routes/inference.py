"""`POST /inference`, as whisper.cpp's `whisper-server` has it: its fields, and the shape of its answers.

Where its default differs, ours holds: the language is detected, speech is found first, five beams, no longest segment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from flask import Blueprint, Response, jsonify
from pydantic import BaseModel, Field, RootModel

from whisperlib import formats
from whisperlib.languages import LANGUAGES
from whisperlib.options import Profile, TranscribeOptions, VadOptions
from whisperlib.results import Segment, Task, Transcription
from whisperlib.web import form, running, schemas, text
from whisperlib.web.openapi import describe

routes = Blueprint("inference", __name__)

Format = Literal["json", "text", "srt", "vtt", "verbose_json"]
FORMATS = get_args(Format)
MAX_CONTEXT_TOKENS = 224  # half of a Whisper model's text positions: it takes no more of the text so far
# To leave these out of account would give another result than was asked for.
REFUSED = {
    "diarize": "speakers are not told apart here",
    "tinydiarize": "speakers are not told apart here",
    "detect_language": "leave language out, and verbose_json tells the one that was detected",
}
# Words are never split here, no request knows of one before, and the rest is about what is not done here.
WITHOUT_EFFECT = (
    "split_on_word",
    "word_thold",
    "no_context",
    "debug_mode",
    "no_language_probabilities",
    "vad_max_speech_duration_s",
    "vad_samples_overlap",
)


class InferenceForm(BaseModel):
    """The fields of whisper-server."""

    file: bytes = Field(description="Audio in any format.", json_schema_extra={"format": "binary"})
    response_format: Format = Field("json", description="How the answer is written.")
    language: str = Field("auto", description="Code, English name, or auto: it is detected.")
    translate: bool = Field(False, description="Translate into English.")
    prompt: str | None = Field(None, description="Text that the model takes as said before.")
    carry_initial_prompt: bool = Field(False, description="Give it to every window.")
    temperature: float = Field(0.0, description="First decoding temperature.")
    temperature_inc: float = Field(0.2, description="Step of the fallback temperatures; 0: none.")
    beam_size: int = Field(5, description="Beams; 0 or 1: greedy; negative: the default.")
    best_of: int = Field(5, description="Candidates above temperature 0.")
    entropy_thold: float = Field(2.4, description="A lower token entropy triggers a fallback.")
    logprob_thold: float = Field(-1.0, description="A lower mean log probability triggers a fallback.")
    no_speech_thold: float = Field(0.6, description="Above it, a window with a low log probability is silence.")
    suppress_non_speech: bool = Field(False, description="Never choose tokens that are no speech; also `suppress_nst`.")
    offset_n: int = Field(0, description="Anything but 0 is refused.")
    offset_t: int = Field(0, description="Start here, milliseconds.")
    duration: int = Field(0, description="Use this much, milliseconds; 0: all.")
    max_len: int = Field(0, description="Longest segment, characters; 0: as the model made them.")
    max_context: int = Field(-1, description="0: no text of the windows before; -1: as much as fits.")
    audio_ctx: int = Field(0, description="Encoder positions of 20 ms, a multiple of 256; 0: all.")
    no_timestamps: bool = Field(False, description="Leave the times out of verbose_json.")
    token_timestamps: bool = Field(True, description="Tell each word and its times in verbose_json.")
    vad: bool = Field(True, description="Find speech first.")
    vad_threshold: float = Field(0.5, description="Speech probability that starts a stretch.")
    vad_min_speech_duration_ms: int = Field(100, description="Shorter stretches are dropped.")
    vad_min_silence_duration_ms: int = Field(2000, description="Shorter pauses do not end a stretch.")
    vad_speech_pad_ms: int = Field(400, description="Kept before and after every stretch.")
    profile: Profile | None = Field(None, description="Not whisper-server's: the profile; left out: the server's.")


class Text(BaseModel):
    """The text."""

    text: str


class InferenceSegment(schemas.VerboseSegment):
    """A segment; `no_timestamps` leaves its times out."""

    start: float | None = None
    end: float | None = None


class VerboseText(Text):
    """The text with its times, in seconds. `detected_language` is there where no language was given."""

    task: Task
    language: str
    detected_language: str | None = None
    duration: float
    segments: list[InferenceSegment]


class InferenceAnswer(RootModel[Text | VerboseText]):
    """The answer in `json` or `verbose_json`."""


@routes.post("/inference")
@describe(
    tag="whisper-server",
    request={"multipart/form-data": InferenceForm},
    answers={
        200: {"application/json": InferenceAnswer, "text/plain": None, "text/vtt": None, "application/x-subrip": None}
    },
)
def inference() -> Response:
    """Transcribe, as whisper.cpp's `whisper-server` does."""
    with running.admitted():
        audio, response_format = form.upload(), form.choice("response_format", FORMATS)
        timed = not form.flag("no_timestamps")
        options = _options(with_words=timed and response_format == "verbose_json")
        result = running.transcribe(audio, options).result
        if response_format == "verbose_json":
            return jsonify(_verbose(result, timed=timed, detected=options.language is None))
        if response_format == "json":
            return jsonify(formats.to_dict(result))
        return text.respond(result, response_format)


def _options(*, with_words: bool) -> TranscribeOptions:
    form.log_unknown({*InferenceForm.model_fields, "suppress_nst", *REFUSED, *WITHOUT_EFFECT})
    for name, why in REFUSED.items():
        if form.flag(name):
            raise form.bad(name, form.text(name), why)
    if form.whole("offset_n"):
        raise form.bad("offset_n", form.text("offset_n"), "segments are numbered from the first here")
    vad_options = _read(VAD_FIELDS)
    with form.complaints_about({ours: theirs for theirs, (ours, _) in {**FIELDS, **VAD_FIELDS}.items()}):
        given = {"word_timestamps": with_words, **_read(FIELDS), "vad_options": VadOptions(**vad_options)}
        return TranscribeOptions(**given)


def _read(fields: Mapping[str, tuple[str, Reader]]) -> dict[str, Any]:
    """Return the options that were given, under our names."""
    return {ours: value for theirs, (ours, read) in fields.items() if (value := read(theirs)) is not None}


def _task(name: str) -> str | None:
    return "translate" if form.flag(name) else None


def _uses_context(name: str) -> bool | None:
    tokens = form.whole(name)
    if tokens is None or tokens < 0 or tokens >= MAX_CONTEXT_TOKENS:
        return None
    if tokens:
        raise form.bad(name, tokens, f"give 0 for none, or -1 for as much as fits, {MAX_CONTEXT_TOKENS} tokens")
    return False


def _suppresses(name: str) -> bool | None:
    """Read a flag that whisper-server has renamed."""
    given = [flag for each in (name, "suppress_nst") if (flag := form.flag(each)) is not None]
    return any(given) if given else None


def _count(name: str) -> int | None:
    """Read a number of beams or candidates: negative is the default, and with none there is still one."""
    value = form.whole(name)
    return None if value is None or value < 0 else max(value, 1)


def _seconds(name: str) -> float | None:
    milliseconds = form.number(name)
    return None if milliseconds is None else milliseconds / 1000


def _seconds_unless_zero(name: str) -> float | None:
    return _seconds(name) or None


Reader = Callable[[str], Any]

# Their name: ours, and how the field is read.
FIELDS: dict[str, tuple[str, Reader]] = {
    "language": ("language", form.text),
    "translate": ("task", _task),
    "prompt": ("initial_prompt", form.prompt),
    "carry_initial_prompt": ("carry_initial_prompt", form.flag),
    "max_context": ("condition_on_previous_text", _uses_context),
    "temperature": ("temperature", form.number),
    "temperature_inc": ("temperature_increment", form.number),
    "beam_size": ("beam_size", _count),
    "best_of": ("best_of", _count),
    "entropy_thold": ("entropy_threshold", form.number),
    "logprob_thold": ("logprob_threshold", form.number),
    "no_speech_thold": ("no_speech_threshold", form.number),
    "suppress_non_speech": ("suppress_non_speech", _suppresses),
    "offset_t": ("offset_seconds", _seconds),
    "duration": ("duration_seconds", _seconds_unless_zero),
    "max_len": ("max_segment_length", form.whole),
    "audio_ctx": ("audio_ctx", form.whole),
    "token_timestamps": ("word_timestamps", form.flag),
    "vad": ("vad", form.flag),
    "profile": ("profile", form.text),
}
VAD_FIELDS: dict[str, tuple[str, Reader]] = {
    "vad_threshold": ("threshold", form.number),
    "vad_min_speech_duration_ms": ("min_speech_seconds", _seconds),
    "vad_min_silence_duration_ms": ("min_silence_seconds", _seconds),
    "vad_speech_pad_ms": ("pad_seconds", _seconds),
}


def _verbose(result: Transcription, *, timed: bool, detected: bool) -> dict[str, Any]:
    told = formats.to_dict(result, verbose=True)
    del told["words"]  # each segment has its own
    told["language"] = LANGUAGES.get(result.language or "", "")  # that of the audio, also of a translation
    if detected:
        told["detected_language"] = told["language"]
    told["segments"] = [_segment(segment, timed=timed) for segment in result.segments]
    return told


def _segment(segment: Segment, *, timed: bool) -> dict[str, Any]:
    told = {**formats.segment_to_dict(segment), "words": [formats.word_to_dict(word) for word in segment.words]}
    if not timed:
        for times in (told, *told["words"]):
            del times["start"], times["end"]
    return told
