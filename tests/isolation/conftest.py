"""An engine in a process of its own, shared by the tests of a module that do not break it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.web.running_server import wait_until
from whisperlib.isolation import IsolatedAdapter
from whisperlib.settings import Settings


def isolated(model: str | Path = "micro", **settings: Any) -> IsolatedAdapter:
    """Start a process with the micro model, two requests at a time, one thread each."""
    return IsolatedAdapter(model, settings=Settings(**{"threads": 1, "concurrency": 2, **settings}))


@pytest.fixture(scope="module")
def shared_environment() -> Iterator[None]:
    """Keep the user's settings out of what a whole module shares."""
    with pytest.MonkeyPatch.context() as environment:
        for name in [name for name in os.environ if name.startswith("WHISPER_")]:
            environment.delenv(name)
        yield


@pytest.fixture(scope="module")
def whisper(shared_environment: None) -> Iterator[IsolatedAdapter]:
    with isolated() as whisper:
        yield whisper


def has_gone(process_id: int) -> bool:
    """Whether a process has ended; one that nobody has waited for yet counts as ended."""
    try:
        status = Path(f"/proc/{process_id}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return True
    return status.rpartition(")")[2].split()[0] == "Z"


def crash(whisper: IsolatedAdapter, number: signal.Signals = signal.SIGSEGV) -> None:
    """End the process, and wait until the parent has noticed and starts another."""
    process = whisper._supervisor._newest
    assert process
    os.kill(process.id, number)
    wait_until(lambda: whisper._supervisor._newest is not process, "its end was noticed")


@contextmanager
def replaced(whisper: IsolatedAdapter) -> Iterator[int]:
    """Give the process's id to a block that ends it, and wait until another has the model."""
    before = whisper.config.process_id
    yield before
    wait_until(lambda: whisper.config.process_id != before, "another process has the model")
    assert has_gone(before)
