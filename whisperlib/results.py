"""What a transcription gives back. All times are seconds on the timeline of the audio that was handed in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

Task = Literal["transcribe", "translate"]
CacheUse = Literal["off", "hit", "miss", "shared"]


@dataclass(frozen=True, slots=True)
class Word:
    """One word with its place in the audio.

    `text` is without surrounding space; `start` and `end` are seconds; `probability` is the mean
    probability of its tokens, 0 to 1.
    """

    text: str
    start: float
    end: float
    probability: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of the text as its bytes, which may be a part of a character, and its natural log probability (≤ 0)."""

    # JSON has no bytes.
    __pydantic_config__: ClassVar[dict[str, str]] = {"ser_json_bytes": "base64", "val_json_bytes": "base64"}

    data: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of speech that the model closed with timestamps.

    `id` counts from 0. `start` and `end` are seconds. `text` keeps the model's leading space off.
    `tokens` are the vocabulary ids of the text. `avg_logprob` is the mean natural log probability of the
    tokens (≤ 0), `logprobs` has that of each, `probability` the mean probability (0 to 1), `no_speech_prob` the
    probability that the window held no speech (0 to 1), `temperature` the one that the segment was decoded at (None
    where the native library does not tell), `compression_ratio` the length of the UTF-8 text over that of its zlib
    form, as OpenAI's `whisper/utils.py` defines it. `words` is empty unless word timestamps were asked for. `separator`
    is what stands between the text before and this one: nothing in languages that are written without spaces.
    """

    id: int
    start: float
    end: float
    text: str
    tokens: tuple[int, ...] = ()
    avg_logprob: float = 0.0
    probability: float = 0.0
    no_speech_prob: float = 0.0
    temperature: float | None = None
    compression_ratio: float = 0.0
    words: tuple[Word, ...] = ()
    separator: str = " "
    logprobs: tuple[TokenLogprob, ...] = field(default=(), repr=False)


def join(segments: Iterable[Segment]) -> str:
    """Return the text of all segments."""
    pieces = [piece for segment in segments if segment.text for piece in (segment.separator, segment.text)]
    return "".join(pieces[1:])


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the wall time of one request went, in seconds.

    `queue` is the wait for a slot, also that of a long request while it lends its own to short ones, `decode` reading
    and resampling the audio, `vad` finding speech, `inference` all of `whisper_full`.
    """

    queue: float = 0.0
    decode: float = 0.0
    vad: float = 0.0
    inference: float = 0.0

    @property
    def total(self) -> float:
        """Sum of all stages, seconds."""
        return self.queue + self.decode + self.vad + self.inference


@dataclass(frozen=True, slots=True)
class LanguageGuess:
    """The detected language: its code (ISO 639-1, `"en"`), and every language's probability (0 to 1)."""

    language: str
    probability: float
    probabilities: dict[str, float] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Transcription:
    """The result of one request.

    `language` is the code (`"en"`) that was asked for or detected, None where there was no speech to tell it from;
    `duration` the length of the audio that was handed in, seconds. `complete` is False when the request was stopped
    and the caller had asked for what was finished by then. `dropped_windows` counts the 30 s windows that the model
    ran over and took for silence, as the options' thresholds have it: what it made up there was dropped. `cache` tells
    where it comes from: the model, with no cache ("off") or into it ("miss"), the cache ("hit"), or another request for
    the same that ran at the same time ("shared").
    """

    text: str
    segments: tuple[Segment, ...]
    language: str | None
    duration: float
    task: Task = "transcribe"
    model: str = ""
    timings: Timings = field(default_factory=Timings, compare=False)
    complete: bool = True
    dropped_windows: int = 0
    cache: CacheUse = field(default="off", compare=False)

    @property
    def words(self) -> tuple[Word, ...]:
        """All words of all segments, in order."""
        return tuple(word for segment in self.segments for word in segment.words)

    @property
    def real_time_factor(self) -> float:
        """Wall seconds spent per second of audio (below 1 is faster than real time)."""
        return self.timings.total / self.duration if self.duration > 0 else 0.0
