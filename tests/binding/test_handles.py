"""Contexts, states and detectors: what they give, and that no misuse reaches C."""

from __future__ import annotations

import dataclasses
import gc
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whisperlib import assets, binding
from whisperlib.binding import Callbacks, Context, FullArguments, Library, RawSegment, VadContext
from whisperlib.errors import ClosedError, EngineError, ModelFileError, OptionError
from whisperlib.pcm import SAMPLE_RATE, Samples

ENGLISH = FullArguments(n_threads=1, language="en")


@pytest.fixture(scope="module")
def library(library_dir: Path) -> Library:
    return binding.load(library_dir)


@pytest.fixture(scope="module")
def context(library: Library) -> Iterator[Context]:
    with Context(library, assets.MICRO_MODEL) as handle:
        yield handle


@pytest.fixture
def clip(sample: Callable[[str], Samples]) -> Samples:
    return sample("seen_020")


def text(segments: list[RawSegment]) -> str:
    return b"".join(segment.text for segment in segments).decode().strip()


def test_transcribes(context: Context, clip: Samples) -> None:
    with context.new_state() as state:
        state.full(ENGLISH, clip)
        segments = state.segments()
        assert text(segments) == "Call the doctor on Thursday."
        assert state.language == "en"
    assert segments[0].start == pytest.approx(0.448, abs=0.2)
    assert segments[0].end == pytest.approx(2.088, abs=0.2)
    assert segments[0].temperature == 0.0
    assert b"".join(token.text for token in segments[0].tokens) == segments[0].text
    assert all(0.0 <= token.probability <= 1.0 for token in segments[0].tokens)


def test_a_run_can_be_cut_to_one_token(context: Context, clip: Samples) -> None:
    short = dataclasses.replace(ENGLISH, beam_size=1, temperature_inc=0.0, no_timestamps=True, max_tokens=1)
    windows = []
    with context.new_state() as state:
        state.full(short, clip, Callbacks(window=lambda: windows.append(1)))
        assert len(windows) == 1
        assert sum(len(segment.tokens) for segment in state.segments()) <= 2


def test_what_is_no_speech_can_be_suppressed(library: Library) -> None:
    assert not ENGLISH.to_struct(library).suppress_nst
    assert dataclasses.replace(ENGLISH, suppress_nst=True).to_struct(library).suppress_nst


def test_the_model_says_what_it_is(context: Context) -> None:
    assert context.is_multilingual
    assert context.n_audio_ctx == 1500
    assert context.languages()[:3] == ("en", "zh", "de")
    assert len(context.languages()) == 99


def test_detects_languages(context: Context, sample: Callable[[str], Samples]) -> None:
    for name, language in (("german_001", "de"), ("spanish_003", "es"), ("seen_020", "en")):
        with context.new_state() as state:
            probabilities = state.detect_language(sample(name), 1)
        assert max(probabilities, key=probabilities.__getitem__) == language
        assert sum(probabilities.values()) == pytest.approx(1.0, abs=1e-3)


def test_states_run_at_once_on_one_context(context: Context, sample: Callable[[str], Samples]) -> None:
    wanted = {
        "seen_020": "Call the doctor on Thursday.",
        "seen_002": "I can see nineteen dogs.",
        "esp_002": "Remind me to feed the dog today.",
    }
    heard: dict[str, str] = {}
    gate = threading.Barrier(len(wanted))

    def run(name: str) -> None:
        with context.new_state() as state:
            gate.wait()
            state.full(ENGLISH, sample(name))
            heard[name] = text(state.segments())

    threads = [threading.Thread(target=run, args=(name,)) for name in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heard == wanted


def test_python_runs_on_while_native_code_works(context: Context, clip: Samples) -> None:
    """The GIL is free inside C: this thread counts between the start and the end of one encoder step."""
    steps: list[int] = []
    counted = 0
    done = threading.Event()

    def stop() -> bool:
        steps.append(counted)
        return False

    def run() -> None:
        with context.new_state() as state:
            state.full(ENGLISH, clip, Callbacks(stop=stop))
        done.set()

    thread = threading.Thread(target=run)
    thread.start()
    while not done.is_set():
        counted += 1
    thread.join()
    # With the GIL held in C, the count would stand still from the first callback to the last.
    assert steps[-1] - steps[0] > 1000


def test_a_closed_handle_says_so(context: Context, clip: Samples) -> None:
    state = context.new_state()
    state.close()
    state.close()
    assert state.closed
    for call in (lambda: state.full(ENGLISH, clip), state.segments, lambda: state.language):
        with pytest.raises(ClosedError, match="state was closed"):
            call()


def test_closing_a_context_closes_its_states_first(library: Library, clip: Samples) -> None:
    context = Context(library, assets.MICRO_MODEL)
    state = context.new_state()
    context.close()
    context.close()
    assert state.closed
    with pytest.raises(ClosedError, match="model context was closed"):
        context.new_state()
    with pytest.raises(ClosedError):
        state.full(ENGLISH, clip)


def test_closing_waits_for_a_running_call(library: Library, clip: Samples) -> None:
    context = Context(library, assets.MICRO_MODEL)
    state = context.new_state()
    inside, go_on = threading.Event(), threading.Event()

    def stop() -> bool:
        inside.set()
        go_on.wait(60)
        return False

    heard: list[str] = []

    def run() -> None:
        state.full(ENGLISH, clip, Callbacks(stop=stop))
        heard.append("finished")

    runner = threading.Thread(target=run)
    runner.start()
    assert inside.wait(60)
    closer = threading.Thread(target=context.close)
    closer.start()
    while not state.closed:
        pass
    assert closer.is_alive()
    go_on.set()
    runner.join()
    closer.join()
    assert heard == ["finished"]


def test_closing_from_a_callback_is_refused(context: Context, clip: Samples) -> None:
    with context.new_state() as state:
        with pytest.raises(EngineError, match="own callback"):
            state.full(ENGLISH, clip, Callbacks(segments=lambda _: state.close()))
        with pytest.raises(EngineError, match="twice at once"):
            state.full(ENGLISH, clip, Callbacks(segments=lambda _: state.full(ENGLISH, clip)))


def test_a_dropped_handle_is_freed(library: Library) -> None:
    freed: list[int] = []
    context = Context(library, assets.MICRO_MODEL)
    state = context.new_state()
    weakref.finalize(state, freed.append, 1)
    weakref.finalize(context, freed.append, 2)
    state_finalizer, context_finalizer = state._finalizer, context._finalizer
    del state, context
    gc.collect()
    assert freed == [1, 2]
    assert not state_finalizer.alive
    assert not context_finalizer.alive


def test_an_exception_in_a_callback_comes_out_of_full(context: Context, clip: Samples) -> None:
    class Mine(Exception):
        pass

    def fail(*_arguments: Any) -> Any:
        raise Mine

    for callbacks in (Callbacks(segments=fail), Callbacks(progress=fail), Callbacks(stop=fail)):
        with context.new_state() as state, pytest.raises(Mine):
            state.full(ENGLISH, clip, callbacks)


def test_stop_ends_within_a_step(context: Context, clip: Samples, caplog: pytest.LogCaptureFixture) -> None:
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked == 3

    with context.new_state() as state, pytest.raises(EngineError) as caught:
        state.full(ENGLISH, clip, Callbacks(stop=stop))
    assert asked == 3
    assert caught.value.code in {-6, -8, -9}
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(
    "change",
    [
        {"beam_size": 9},
        {"best_of": 0},
        {"temperature": 1.5},
        {"temperature_inc": 1e-9},
        {"n_threads": 0},
        {"audio_ctx": -1},
        {"n_max_text_ctx": -1},
    ],
)
def test_arguments_that_c_cannot_take_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(change))):
        FullArguments(**{"n_threads": 1, "language": "en", **change})


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (FullArguments(n_threads=1, language="xx"), "xx"),
        (FullArguments(n_threads=1, language="yue"), "yue"),  # its token means "translate" before large-v3
        (FullArguments(n_threads=1, language="en", audio_ctx=1501), "audio_ctx"),
    ],
)
def test_arguments_that_the_model_cannot_take_are_refused(
    context: Context, clip: Samples, arguments: FullArguments, complaint: str
) -> None:
    with context.new_state() as state, pytest.raises(OptionError, match=complaint):
        state.full(arguments, clip)


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros(15_999, np.float32),
        np.zeros(0, np.float32),
        np.zeros(32_000, np.float64),
        np.zeros((2, 16_000), np.float32),
        np.zeros(64_000, np.float32)[::2],
        np.full(16_000, np.nan, np.float32),
        np.full(16_000, np.inf, np.float32),
        [0.0] * 16_000,
    ],
    ids=["short", "empty", "float64", "2-d", "strided", "nan", "inf", "list"],
)
def test_samples_that_c_cannot_take_are_refused(context: Context, samples: Any) -> None:
    with context.new_state() as state:
        with pytest.raises(OptionError, match="samples"):
            state.full(ENGLISH, samples)
        with pytest.raises(OptionError, match="samples"):
            state.detect_language(samples, 1)


def test_the_token_count_is_bounded(context: Context) -> None:
    assert context.token_count("call the doctor") > 0
    assert context.token_count("a" * 2000) > 0
    with pytest.raises(OptionError, match="2001"):
        context.token_count("a" * 2001)


def test_a_missing_file_is_an_error(library: Library, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="nothing-here.bin"):
        Context(library, tmp_path / "nothing-here.bin")
    with pytest.raises(ModelFileError, match="nothing-here.bin"):
        VadContext(library, tmp_path / "nothing-here.bin")


def test_native_log_goes_to_logging(library: Library, caplog: pytest.LogCaptureFixture, capfd: Any) -> None:
    with caplog.at_level(logging.DEBUG, logger="whisperlib.native"):
        Context(library, assets.MICRO_MODEL).close()
    assert any("loading model" in record.message for record in caplog.records)
    assert capfd.readouterr() == ("", "")


class TestVad:
    def test_tells_speech_from_silence(self, library: Library, clip: Samples, silence: Samples) -> None:
        with VadContext(library, assets.VAD_MODEL) as vad:
            assert vad.speech_probabilities(silence).max() < 0.1
            assert vad.speech_probabilities(clip).max() > 0.9
            assert vad.speech_probabilities(clip).shape == (-(-len(clip) // VadContext.window_samples),)

    def test_remembers_nothing(self, library: Library, clip: Samples, silence: Samples) -> None:
        with VadContext(library, assets.VAD_MODEL) as vad:
            first = vad.speech_probabilities(silence)
            vad.speech_probabilities(clip)
            assert np.array_equal(vad.speech_probabilities(silence), first)

    def test_asks_after_every_minute_whether_to_go_on(self, library: Library, clip: Samples) -> None:
        minutes = np.resize(clip, 150 * SAMPLE_RATE)
        asked: list[int] = []

        def stop_at_the_second() -> None:
            asked.append(len(asked))
            if len(asked) == 2:
                raise TimeoutError("no more time")

        with VadContext(library, assets.VAD_MODEL) as vad:
            first = vad.speech_probabilities(clip)
            with pytest.raises(TimeoutError, match="no more time"):
                vad.speech_probabilities(minutes, stop_at_the_second)
            assert asked == [0, 1]
            assert np.array_equal(vad.speech_probabilities(clip), first)

    def test_its_minutes_are_one_recording(
        self, library: Library, clip: Samples, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        minutes = np.resize(clip, 125 * SAMPLE_RATE + 7)
        with VadContext(library, assets.VAD_MODEL) as vad:
            in_blocks = vad.speech_probabilities(minutes)
            # A stand-in for a libwhisper that cannot go on where it ended.
            monkeypatch.setattr(Library, "keeps_listening", property(lambda _self: False))
            assert np.array_equal(vad.speech_probabilities(minutes), in_blocks)

    def test_a_closed_one_says_so(self, library: Library, clip: Samples) -> None:
        vad = VadContext(library, assets.VAD_MODEL)
        vad.close()
        with pytest.raises(ClosedError, match="VAD context was closed"):
            vad.speech_probabilities(clip)
