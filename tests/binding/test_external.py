"""An encoder of the caller's: what it is given, and how its failures come out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from whisperlib import assets, binding
from whisperlib.binding import Callbacks, Context, EncoderWindow, FullArguments, Library, State
from whisperlib.errors import LibraryLoadError
from whisperlib.pcm import Samples

ENGLISH = FullArguments(n_threads=3, language="en")


@pytest.fixture
def context(library_dir: Path) -> Iterator[Context]:
    with Context(binding.load(library_dir), assets.MICRO_MODEL) as handle:
        yield handle


@pytest.fixture
def clip(sample: Callable[[str], Samples]) -> Samples:
    return sample("seen_020")


def test_is_given_the_spectrogram_and_fills_what_the_decoder_reads(context: Context, clip: Samples) -> None:
    with context.new_state() as state:
        expected = state.encode(clip, 1)
    seen: list[tuple[tuple[int, ...], int, float]] = []

    def encode(window: EncoderWindow) -> None:
        seen.append((window.mel.shape, window.threads, float(window.mel.max() - window.mel.min())))
        window.out.keys[:], window.out.values[:] = expected.keys, expected.values

    context.use_encoder(encode)
    with context.new_state() as state:
        state.full(ENGLISH, clip)
        assert state.segments()[0].text == b" Call the doctor on Thursday."
    assert [(shape, threads) for shape, threads, _ in seen] == [((80, 3000), 3)]
    assert 0.5 < seen[0][2] <= 2.0  # the normalised log-mel spans at most 8 / 4 (whisper/audio.py)
    assert expected.keys.shape == (3, 1500, 128)
    assert expected.values.shape == (3, 128, 1500)


def test_what_it_leaves_empty_is_not_understood(context: Context, clip: Samples) -> None:
    def zeros(window: EncoderWindow) -> None:
        window.out.keys[:], window.out.values[:] = np.float16(0), np.float16(0)

    context.use_encoder(zeros)
    with context.new_state() as state:
        state.full(ENGLISH, clip)
        assert b"doctor" not in b"".join(segment.text for segment in state.segments())


def test_its_exception_is_raised_by_every_way_in(context: Context, clip: Samples) -> None:
    def fail(_window: EncoderWindow) -> None:
        raise ZeroDivisionError("no encoder today")

    context.use_encoder(fail)
    ways_in: tuple[Callable[[State], object], ...] = (
        lambda state: state.full(ENGLISH, clip),
        lambda state: state.full(FullArguments(n_threads=1, language=None), clip),
        lambda state: state.detect_language(clip, 1),
        lambda state: state.encode(clip, 1),
    )
    for run in ways_in:
        with context.new_state() as state, pytest.raises(ZeroDivisionError, match="no encoder today"):
            run(state)
    context.use_encoder(None)
    with context.new_state() as state:
        state.full(ENGLISH, clip)
        assert state.segments()


def test_the_language_is_detected_within_the_first_encode(context: Context, sample: Callable[[str], Samples]) -> None:
    windows = 0
    clip = sample("german_001")
    with context.new_state() as state:
        expected = state.encode(clip, 1)

    def count(window: EncoderWindow) -> None:
        nonlocal windows
        windows += 1
        window.out.keys[:], window.out.values[:] = expected.keys, expected.values

    context.use_encoder(count)
    begun = []
    with context.new_state() as state:
        arguments = FullArguments(n_threads=1, language=None)
        state.full(arguments, clip, Callbacks(window=lambda: begun.append(windows)))
        assert state.language == "de"
    assert windows == len(begun) == 1


def test_a_library_that_is_not_ours_takes_none(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    # A stand-in for somebody else's libwhisper: without our patches it has no such function.
    monkeypatch.setattr(Library, "takes_encoder", property(lambda _self: False))
    with pytest.raises(LibraryLoadError, match="takes no encoder: run `make native`"):
        context.use_encoder(lambda _window: None)
    with context.new_state() as state:
        assert not state.closed
