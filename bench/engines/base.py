"""What an engine is: a model that stays loaded in a process of its own, and answers requests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from bench import models


@dataclass(frozen=True)
class Setup:
    """What an engine loads. `size` is one of `models.SIZES`; `kind` the weight type of whisper.cpp's files.

    `threads` is None where the engine shall choose for itself. `variant` tells the engines of one module apart.
    """

    size: str
    kind: str = "q8_0"
    threads: int | None = None
    variant: str = ""


@dataclass(frozen=True)
class Request:
    """One file to transcribe, of so many `seconds`.

    `skip_pauses`: with the engine's own voice activity detection, where it has one. `detailed`: ours shall time its
    stages.
    """

    audio: str
    seconds: float
    beam_size: int
    skip_pauses: bool = False
    detailed: bool = False


@dataclass(frozen=True)
class Reply:
    """What came back: the text, and seconds of the engine's stages by name, where it tells them.

    `seconds` is set where it is not all of the call that is asked for.
    """

    text: str
    stages: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None


class Engine(Protocol):
    """A loaded model.

    `process_ids` are the processes that hold it where that is not the worker itself; `spawns` says that every
    request is a process of its own.
    """

    version: str
    process_ids: tuple[int, ...]
    spawns: bool

    @staticmethod
    def prepare(setup: Setup) -> None:
        """Make the files that are missing, in another process than the one that is measured."""

    def __init__(self, setup: Setup) -> None:
        """Load the model. Raises ImportError where the peer is not installed."""

    def transcribe(self, request: Request) -> Reply:
        """Transcribe one file, from any thread."""

    def close(self) -> None:
        """Free the model, and end what was started."""


class Base:
    """Base of the engines: a ggml file, in the worker's own process, if they do not say otherwise."""

    process_ids: tuple[int, ...] = ()
    spawns = False

    @staticmethod
    def prepare(setup: Setup) -> None:
        """Make the ggml file."""
        models.ggml(setup.size, setup.kind)

    def close(self) -> None:
        """Nothing to do: the process ends."""


def without(options: dict[str, Any]) -> dict[str, Any]:
    """Return `options` without those that are None, so that the engine's own defaults hold."""
    return {name: value for name, value in options.items() if value is not None}
