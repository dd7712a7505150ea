"""The spare state: made when the engine is idle, used once, and never more memory than the slots take."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from whisperlib import WhisperLibraryAdapter, assets, binding
from whisperlib.errors import OutOfMemoryError
from whisperlib.spare import SpareState

CLIP, TEXT = assets.SAMPLES / "seen_020.flac", "Call the doctor on Thursday."
PATIENCE_SECONDS = 30


@pytest.fixture
def context(adapter: WhisperLibraryAdapter) -> Iterator[binding.Context]:
    with binding.Context(binding.load(adapter.config.library_directory), assets.MICRO_MODEL) as context:
        yield context


def states(context: binding.Context) -> list[binding.State]:
    return [state for state in list(context._children) if not state.closed]


def test_there_is_one_at_most_and_each_is_given_once(context: binding.Context) -> None:
    spare = SpareState(context)
    for _ in range(3):
        spare.prepare()
    (made,) = states(context)
    taken = [spare.take(), spare.take()]
    assert taken[0] is made
    assert taken[1] is not made
    spare.prepare()
    assert len(states(context)) == 3
    spare.give_up()
    spare.give_up()
    assert len(states(context)) == 2
    spare.prepare()
    assert len(states(context)) == 2
    assert not spare.take().closed


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Released whenever an adapter has prepared its spare."""
    prepared = threading.Semaphore(0)
    prepare = SpareState.prepare

    def note(self: SpareState) -> None:
        prepare(self)
        prepared.release()

    monkeypatch.setattr(SpareState, "prepare", note)
    return prepared


def test_the_next_request_runs_on_it_and_no_state_runs_twice(
    idle: threading.Semaphore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[binding.State] = []
    full = binding.State.full

    def note(self: binding.State, *arguments: object) -> None:
        ran.append(self)
        full(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(binding.State, "full", note)
    with WhisperLibraryAdapter("micro", threads=1, concurrency=1) as whisper:
        ran.clear()  # of the warm-up
        for number in range(3):
            assert idle.acquire(timeout=PATIENCE_SECONDS)
            (made,) = states(whisper._context)
            assert whisper.transcribe(CLIP, language="en").text == TEXT
            assert ran[number] is made
            assert made.closed
        assert len(set(map(id, ran))) == 3
        assert idle.acquire(timeout=PATIENCE_SECONDS)
        context = whisper._context
        assert len(states(context)) == 1
    assert not states(context)


def test_after_memory_has_ended_there_is_none(idle: threading.Semaphore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OutOfMemoryError("no memory", -7)

    with WhisperLibraryAdapter("micro", threads=1, concurrency=1) as whisper:
        assert idle.acquire(timeout=PATIENCE_SECONDS)
        with monkeypatch.context() as patch:
            patch.setattr(binding.State, "full", fail)
            with pytest.raises(OutOfMemoryError):
                whisper.transcribe(CLIP, language="en")
        assert idle.acquire(timeout=PATIENCE_SECONDS)
        assert not states(whisper._context)
        assert whisper.transcribe(CLIP, language="en").text == TEXT
