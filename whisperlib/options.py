"""The options of one request: frozen, and checked once, before anything native is reached."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from whisperlib.errors import OptionError
from whisperlib.languages import language_code
from whisperlib.results import Task

MAX_DECODERS = 8  # WHISPER_MAX_DECODERS in src/whisper.cpp: with a ninth, whisper_full returns -4
AUDIO_CTX_STEP = 256  # flash attention pads keys and values to 256 rows; a multiple has no padding rows
MAX_AUDIO_CTX = 1500  # n_audio_ctx of every Whisper model: 30 s
SECONDS_PER_AUDIO_CTX = 0.02  # an encoder position covers two frames of 10 ms
# The model takes 224 tokens of prompt; whisper.cpp tokenises with std::regex, whose recursion overflows the
# stack on very long text.
MAX_PROMPT_CHARACTERS = 2000
MAX_SHOWN_CHARACTERS = 100  # of a refused value, in the message

Profile = Literal["accurate", "balanced", "fast"]
PROFILES: tuple[Profile, ...] = get_args(Profile)
DEFAULT_PROFILE: Profile = "balanced"

ProgressCallback = Callable[[float], None]
Model = TypeVar("Model", bound="Frozen")


class CancelToken:
    """Stops a request from another thread, within one encoder or decoder step."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = False
        self._listeners: list[Callable[[], object]] = []

    def cancel(self) -> None:
        """Ask to stop. Calling it again changes nothing."""
        with self._lock:
            self._cancelled = True
            listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener()

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled

    def add_listener(self, listener: Callable[[], object]) -> None:
        """Call `listener` once when the token is cancelled; at once if it is already."""
        with self._lock:
            if not self._cancelled:
                self._listeners.append(listener)
                return
        listener()

    def remove_listener(self, listener: Callable[[], object]) -> None:
        """Forget `listener`; an unknown one is ignored."""
        with self._lock:
            if listener in self._listeners:
                self._listeners.remove(listener)


class Frozen(BaseModel):
    """What is checked once, when it is made, and never changes. Raises OptionError."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True, str_max_length=10_000
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except pydantic.ValidationError as error:
            raise _complaint(error, type(self)) from None

    def replace(self: Model, **changes: Any) -> Model:
        """Return a copy with `changes`, checked again. Raises OptionError."""
        return type(self)(**{**{name: getattr(self, name) for name in self.model_fields_set}, **changes})


def _complaint(error: pydantic.ValidationError, model: type[BaseModel]) -> OptionError:
    details = error.errors()[0]
    name = ".".join(str(part) for part in details["loc"]) or model.__name__
    if details["type"] == "extra_forbidden":
        return OptionError(f"unknown option {name!r}: the options are {', '.join(sorted(model.model_fields))}", name)
    problem = details["msg"].removeprefix("Value error, ")
    return OptionError(f"option {name} = {_shown(details['input'])}: {problem[0].lower()}{problem[1:]}", name)


def _shown(value: object) -> str:
    """Show a value of any kind in one short line."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # an integer of more digits than Python prints
        text = f"<{type(value).__name__}>"
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}…"


class VadOptions(Frozen):
    """How speech is told from silence. Times are seconds.

    A stretch starts where the speech probability reaches `threshold` and ends when it stays below
    `threshold - 0.15` for `min_silence_seconds`. Stretches shorter than
    `min_speech_seconds` are dropped; each is widened by `pad_seconds` on both sides.
    """

    threshold: float = Field(0.5, ge=0.05, le=0.95, description="Speech probability that starts a stretch.")
    min_speech_seconds: float = Field(0.1, ge=0.0, le=10.0, description="Shorter stretches are dropped.")
    min_silence_seconds: float = Field(2.0, ge=0.0, le=30.0, description="Shorter pauses do not end a stretch.")
    pad_seconds: float = Field(0.4, ge=0.0, le=5.0, description="Kept before and after every stretch.")


class TranscribeOptions(Frozen):
    """Everything that can be chosen for one request.

    A profile is a set of defaults: `with_profile` gives them to the options that were left out. Raises OptionError,
    which names the option, its value and what is allowed.
    """

    profile: Profile | None = Field(
        None, description="Defaults of beam_size, chunking and fit_audio_ctx; left out: WHISPER_PROFILE."
    )
    language: str | None = Field(
        None, description="Code ('de'), regional tag or English name; left out or 'auto': it is detected."
    )
    task: Task = Field("transcribe", description="'translate' gives English text.")
    beam_size: int = Field(5, ge=1, le=MAX_DECODERS, description="Beams at temperature 0; 1 is greedy.")
    best_of: int = Field(5, ge=1, le=MAX_DECODERS, description="Candidates above temperature 0.")
    temperature: float = Field(
        0.0,
        ge=0.0,
        le=1.0,  # above 1 with an increment whisper_full has no temperature to try and never ends
        description="First decoding temperature.",
    )
    temperature_increment: float = Field(
        0.2, ge=0.0, le=1.0, description="Step of the fallback temperatures up to 1; 0 turns fallback off."
    )
    logprob_threshold: float = Field(
        -1.0, ge=-100.0, le=0.0, description="A lower mean log probability triggers a fallback."
    )
    entropy_threshold: float = Field(
        2.4, ge=0.0, le=10.0, description="A lower token entropy (a repetition) triggers a fallback."
    )
    no_speech_threshold: float = Field(
        0.6, ge=0.0, le=1.0, description="A window above it with a low log probability is taken as silence."
    )
    suppress_non_speech: bool = Field(
        False, description="Never choose tokens that are no speech, such as brackets, musical notes and dashes."
    )
    initial_prompt: str | None = Field(
        None, max_length=MAX_PROMPT_CHARACTERS, description="Text that the model takes as said before."
    )
    carry_initial_prompt: bool = Field(
        False, description="Give the initial prompt to every 30 s window, not only to the first."
    )
    condition_on_previous_text: bool = Field(
        True,
        description="Give the text so far to the next window. Without it an initial prompt is carried.",
    )
    word_timestamps: bool = Field(False, description="Times and probability of every word.")
    max_segment_length: int = Field(
        0, ge=0, le=10_000, description="Characters; longer segments are split between words. 0: as they come."
    )
    offset_seconds: float = Field(0.0, ge=0.0, le=1e6, description="Start here.")
    duration_seconds: float | None = Field(
        None, gt=0.0, le=1e6, description="Use this much from the offset; left out: to the end."
    )
    vad: bool = Field(True, description="Find speech first: pauses are skipped, silence costs no inference.")
    vad_options: VadOptions = Field(default_factory=VadOptions, description="How speech is found.")
    audio_ctx: int = Field(
        0,
        ge=0,
        le=MAX_AUDIO_CTX,
        description="Encoder positions of 20 ms, a multiple of 256; 0: the full 1500. The audio must fit.",
    )
    fit_audio_ctx: bool = Field(
        False, description="Encode only as much as each chunk of speech needs, where audio_ctx does not say."
    )
    chunking: Literal["sequential", "parallel"] = Field(
        "sequential",
        description="Speech longer than 30 s: in windows that know the text so far, or cut at pauses into chunks "
        "that run side by side. Without vad it is sequential.",
    )
    threads: int | None = Field(
        None, ge=1, le=512, description="Threads of this request; left out: those of the loaded model."
    )
    timeout_seconds: float | None = Field(
        None, gt=0.0, le=1e7, description="Deadline, counted from the call; waiting for a slot counts."
    )
    max_wait_seconds: float | None = Field(
        None, ge=0.0, le=1e7, description="Refuse at once if the wait for a slot is predicted to be longer."
    )
    background: bool = Field(
        False, description="Run while no other request waits, and make way for those that come at every 30 s window."
    )
    on_interrupt: Literal["raise", "partial"] = Field(
        "raise", description="At a deadline or cancel: fail, or give what is finished."
    )
    cache: bool = Field(
        True, description="Take a result that was made before, and keep this one, where WHISPER_CACHE says."
    )
    cancel: CancelToken | None = Field(None, repr=False, description="Stops the request from another thread.")
    progress: ProgressCallback | None = Field(
        None, repr=False, description="Called with the fraction done, 0 to 1, in the thread that transcribes."
    )

    def with_profile(self, default: Profile = DEFAULT_PROFILE) -> TranscribeOptions:
        """Return a copy whose `profile` is set, `default` where it was left out, and with the profile's defaults.

        What was given explicitly stays as it is; a given `audio_ctx` also goes before the profile's `fit_audio_ctx`.
        """
        profile = self.profile or default
        given = self.model_fields_set | ({"fit_audio_ctx"} if "audio_ctx" in self.model_fields_set else set())
        defaults = {name: value for name, value in _DEFAULTS[profile].items() if name not in given}
        return self.replace(profile=profile, **defaults)

    @pydantic.field_validator("language")
    @classmethod
    def _known_language(cls, value: str | None) -> str | None:
        return language_code(value)

    @pydantic.field_validator("temperature_increment")
    @classmethod
    def _bounded_fallbacks(cls, value: float) -> float:
        if 0.0 < value < 0.05:
            raise ValueError("input should be 0 or at least 0.05 (20 fallbacks)")
        return value

    @pydantic.field_validator("audio_ctx")
    @classmethod
    def _whole_steps(cls, value: int) -> int:
        if value % AUDIO_CTX_STEP and value != MAX_AUDIO_CTX:
            raise ValueError(f"input should be 0, {MAX_AUDIO_CTX} or a multiple of {AUDIO_CTX_STEP}")
        return value

    @pydantic.field_validator("initial_prompt")
    @classmethod
    def _clean_prompt(cls, value: str | None) -> str | None:
        if value is None or not value.strip():
            return None
        if "\0" in value:
            raise ValueError("input should not hold a NUL character")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("input should be valid Unicode") from None
        return value


# What each profile makes of the options that a request leaves out.
_DEFAULTS: dict[Profile, dict[str, Any]] = {
    "accurate": {"beam_size": 5, "chunking": "sequential", "fit_audio_ctx": False},
    "balanced": {"beam_size": 5, "chunking": "sequential", "fit_audio_ctx": False},
    "fast": {"beam_size": 1, "chunking": "parallel", "fit_audio_ctx": True},
}


def resolve_options(options: TranscribeOptions | None, overrides: dict[str, Any]) -> TranscribeOptions:
    """Merge an options object and keyword overrides into one checked object. Raises OptionError."""
    if options is None:
        return TranscribeOptions(**overrides)
    if not isinstance(options, TranscribeOptions):
        raise OptionError(f"options should be TranscribeOptions, not {type(options).__name__}")
    return options.replace(**overrides) if overrides else options
