"""What a loaded model offers to those who send it requests, wherever it runs."""

from __future__ import annotations

import os
from typing import Any, Protocol

from whisperlib.adapter import ModelConfig, WhisperLibraryAdapter
from whisperlib.audio import Source
from whisperlib.cache import Stats
from whisperlib.isolation import IsolatedAdapter
from whisperlib.job import TranscriptionStream
from whisperlib.options import TranscribeOptions
from whisperlib.results import LanguageGuess, Transcription
from whisperlib.scheduler import Workload
from whisperlib.settings import Settings


class Kept(Protocol):
    """The results that are kept."""

    def stats(self) -> Stats:
        """Tell how full the place is."""


class Engine(Protocol):
    """A loaded model; `WhisperLibraryAdapter` says what each call does."""

    settings: Settings

    @property
    def config(self) -> ModelConfig:
        """What it runs."""

    @property
    def cache(self) -> Kept | None:
        """The results that are kept, if any."""

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""

    def transcribe(self, source: Source, options: TranscribeOptions | None = None, **overrides: Any) -> Transcription:
        """Transcribe audio."""

    def stream(self, source: Source, options: TranscribeOptions | None = None, **overrides: Any) -> TranscriptionStream:
        """Transcribe audio, giving each segment as soon as it is settled."""

    def detect_language(
        self, source: Source, options: TranscribeOptions | None = None, **overrides: Any
    ) -> LanguageGuess:
        """Tell the language of the first speech."""

    def workload(self) -> Workload:
        """Tell what runs and waits."""

    def close(self) -> None:
        """Stop what runs, and free the model."""


def start(model: str | os.PathLike[str] | None = None, *, settings: Settings) -> Engine:
    """Load a model as the settings say; None is the one that they name. Raises what `WhisperLibraryAdapter` raises."""
    if settings.isolation == "process":
        return IsolatedAdapter(model, settings=settings)
    return WhisperLibraryAdapter(model, settings=settings)
