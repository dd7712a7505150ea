"""What the two processes say to each other. A request's number is `call`; what is said back of it bears it, too."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from whisperlib.adapter import ModelConfig
from whisperlib.options import TranscribeOptions
from whisperlib.results import CacheUse, Segment
from whisperlib.settings import Settings

LOADING = 0  # the `call` of loading the model

Kind: TypeAlias = Literal["transcribe", "stream", "detect_language"]


@dataclass(frozen=True)
class Load:
    """The first: load `model`, and log from these levels on, by the names of the loggers."""

    model: str | os.PathLike[str] | None
    settings: Settings
    log_levels: dict[str, int]


@dataclass(frozen=True)
class Ask:
    """A request; its samples follow, as an open file. `options` without callbacks; `progress`: whether to report it.

    `started` is the monotonic clock, which both processes share, when the caller's call began.
    """

    call: int
    kind: Kind
    options: TranscribeOptions
    progress: bool
    started: float
    decode_seconds: float


@dataclass(frozen=True)
class Cancel:
    """Stop a request."""

    call: int


@dataclass(frozen=True)
class Query:
    """Tell how the engine is."""

    call: int
    what: Literal["workload", "cache"]


@dataclass(frozen=True)
class Close:
    """Stop all, say so of each request, and end."""


@dataclass(frozen=True)
class Loaded:
    """Requests are taken. `caches`: whether results are kept."""

    config: ModelConfig
    caches: bool


@dataclass(frozen=True)
class Queued:
    """A streamed request is in the queue, or answered from the cache."""

    call: int
    cache: CacheUse


@dataclass(frozen=True)
class Settled:
    """A segment of a request, in order."""

    call: int
    segment: Segment


@dataclass(frozen=True)
class Progressed:
    """How much of a request is done: `fraction` is 0 to 1."""

    call: int
    fraction: float


@dataclass(frozen=True)
class Done:
    """The last of a request: its result; of a Transcription all but text and segments, which came before."""

    call: int
    result: Any


@dataclass(frozen=True)
class Failed:
    """The last of a request: what it raised."""

    call: int
    error: BaseException


@dataclass(frozen=True)
class Logged:
    """What was logged, on behalf of a request if `call` says so."""

    call: int | None
    record: logging.LogRecord


Order: TypeAlias = Load | Ask | Cancel | Query | Close
Event: TypeAlias = Queued | Settled | Progressed | Done | Failed
Report: TypeAlias = Loaded | Logged | Event
