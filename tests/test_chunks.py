"""Long audio in chunks: the text, the times, the order, and the end of it, with any number of slots."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from whisperlib import CancelToken, WhisperLibraryAdapter, assets, binding
from whisperlib.errors import DeadlineExceeded, EngineError, TranscriptionCancelled
from whisperlib.options import TranscribeOptions
from whisperlib.pcm import SAMPLE_RATE, Samples
from whisperlib.results import Segment, Transcription

LONG = assets.SAMPLES / "long_slt75.flac"
FAST = TranscribeOptions(profile="fast", language="en")
CLIPS = ("seen_020", "seen_002", "seen_010")  # one voice, and the micro model hears every word

Sample = Callable[[str], Samples]
Reference = dict[str, dict[str, Any]]


def same(one: Transcription, other: Transcription) -> bool:
    return (one.segments, one.language, one.dropped_windows) == (other.segments, other.language, other.dropped_windows)


@pytest.fixture(scope="module")
def in_turn() -> Iterator[WhisperLibraryAdapter]:
    """One slot: the chunks run one after another."""
    with WhisperLibraryAdapter("micro", threads=1, concurrency=1) as whisper:
        yield whisper


class TestText:
    def test_the_long_sample_is_what_it_is_in_sequence(
        self, adapter: WhisperLibraryAdapter, references: Reference
    ) -> None:
        reference = references["long_slt75"]
        in_sequence = adapter.transcribe(LONG)
        in_chunks = adapter.transcribe(LONG, chunking="parallel")
        assert in_chunks.text == in_sequence.text == reference["text"]
        assert in_chunks.language == "en"
        assert [segment.id for segment in in_chunks.segments] == list(range(len(reference["segments"])))
        for spoken, segment in zip(reference["segments"], in_chunks.segments, strict=True):
            assert segment.start == pytest.approx(spoken["start"], abs=0.2)
            assert segment.end == pytest.approx(spoken["end"], abs=0.2)

    def test_the_slots_make_no_difference(self, in_turn: WhisperLibraryAdapter) -> None:
        options = FAST.replace(word_timestamps=True, initial_prompt="Close the door.", audio_ctx=1024)
        alone = in_turn.transcribe(LONG, options)
        for slots in (2, 3):
            with WhisperLibraryAdapter("micro", threads=1, concurrency=slots) as whisper:
                assert same(whisper.transcribe(LONG, options), alone)

    @pytest.mark.parametrize("pause_seconds", [0.3, 0.8, 2.5])
    @pytest.mark.parametrize("shift_seconds", [0.2, 0.5, 0.8, 1.1, 1.4, 1.7])
    def test_no_word_is_lost_or_doubled_wherever_the_cut_falls(
        self,
        adapter: WhisperLibraryAdapter,
        sample: Sample,
        references: Reference,
        pause_seconds: float,
        shift_seconds: float,
    ) -> None:
        """Sentences at known places; the first pause moves all that follow through the place of the cut."""
        pieces, spoken, position = [], [], 0
        for number, name in enumerate(CLIPS * 5):
            ((start, end, text),) = [(s["start"], s["end"], s["text"]) for s in references[name]["segments"]]
            spoken.append((position / SAMPLE_RATE + start, position / SAMPLE_RATE + end, text))
            seconds = pause_seconds if number else shift_seconds
            pieces += [sample(name), np.zeros(round(seconds * SAMPLE_RATE), np.float32)]
            position += len(pieces[-1]) + len(pieces[-2])
        result = adapter.transcribe(np.concatenate(pieces), FAST)
        assert [segment.text for segment in result.segments] == [text for *_, text in spoken]
        for (start, end, _), segment in zip(spoken, result.segments, strict=True):
            assert segment.start == pytest.approx(start, abs=0.25)
            assert segment.end == pytest.approx(end, abs=0.25)

    def test_the_prompt_goes_to_every_chunk_and_the_language_of_the_first_holds(
        self, adapter: WhisperLibraryAdapter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[binding.FullArguments] = []
        full = binding.State.full

        def note(self: binding.State, arguments: binding.FullArguments, *rest: Any) -> None:
            seen.append(arguments)
            full(self, arguments, *rest)

        monkeypatch.setattr(binding.State, "full", note)
        adapter.transcribe(LONG, profile="fast", initial_prompt="Close the front door.")
        assert [arguments.initial_prompt for arguments in seen] == ["Close the front door."] * 3
        assert [arguments.language for arguments in seen] == [None, "en", "en"]

    def test_a_given_audio_ctx_bounds_the_chunks(
        self, adapter: WhisperLibraryAdapter, references: Reference, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[tuple[int, int]] = []
        full = binding.State.full

        def note(self: binding.State, arguments: binding.FullArguments, samples: Samples, *rest: Any) -> None:
            seen.append((arguments.audio_ctx, len(samples)))
            full(self, arguments, samples, *rest)

        monkeypatch.setattr(binding.State, "full", note)
        result = adapter.transcribe(LONG, FAST, audio_ctx=512)
        assert len(result.segments) == len(references["long_slt75"]["segments"])
        assert all(audio_ctx == 512 and n <= 512 * 320 for audio_ctx, n in seen)
        seen.clear()
        adapter.transcribe(assets.SAMPLES / "seen_020.flac", FAST)
        assert seen[0][0] == 256
        assert adapter.transcribe(LONG, FAST, chunking="sequential").text
        assert {audio_ctx for audio_ctx, _ in seen[1:]} == {0}

    def test_without_vad_it_is_sequential(self, adapter: WhisperLibraryAdapter) -> None:
        clip: dict[str, Any] = {"duration_seconds": 40.0, "vad": False, "language": "en"}
        assert same(adapter.transcribe(LONG, chunking="parallel", **clip), adapter.transcribe(LONG, **clip))


class TestOrder:
    def test_a_stream_is_in_order_though_the_second_chunk_ends_first(self, in_turn: WhisperLibraryAdapter) -> None:
        """The first chunk is held before its encoder until another has ended; its segments come first all the same."""
        expected = in_turn.transcribe(LONG, FAST)
        ended = threading.Event()
        fractions: list[float] = []
        full = binding.State.full
        order: list[int] = []

        def hold(self: binding.State, arguments: Any, samples: Samples, callbacks: binding.Callbacks) -> None:
            number = len(order)
            order.append(number)
            if number == 0:
                assert ended.wait(60)
            full(self, arguments, samples, callbacks)
            if number == 1:
                ended.set()

        with pytest.MonkeyPatch.context() as patch, WhisperLibraryAdapter("micro", threads=1, concurrency=2) as whisper:
            patch.setattr(binding.State, "full", hold)
            with whisper.stream(LONG, FAST, language="en", progress=fractions.append) as stream:
                segments = list(stream)
                assert same(stream.result, expected)
        assert tuple(segments) == expected.segments
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1.0
        assert len(fractions) > 3

    def test_segments_come_before_the_end(self, in_turn: WhisperLibraryAdapter) -> None:
        go_on = threading.Event()

        def hold(fraction: float) -> None:
            assert fraction < 0.5 or go_on.wait(60)

        with in_turn.stream(LONG, FAST, progress=hold) as stream:
            assert next(stream).text == "The code is five zero one nine."
            go_on.set()
            assert len(list(stream)) > 20


class TestEnd:
    @pytest.mark.parametrize("slots", [1, 2])
    def test_a_cancel_within_a_chunk_ends_all(self, slots: int) -> None:
        token, settled = CancelToken(), threading.Event()
        with WhisperLibraryAdapter("micro", threads=1, concurrency=slots) as whisper:

            def stop(fraction: float) -> None:
                if fraction > 0.3:
                    settled.set()
                    token.cancel()

            with pytest.raises(TranscriptionCancelled) as caught:
                whisper.transcribe(LONG, FAST, cancel=token, progress=stop)
            assert settled.is_set()
            partial = caught.value.partial
            assert partial is not None
            assert not partial.complete
            whole = whisper.transcribe(LONG, FAST)
            assert partial.segments == whole.segments[: len(partial.segments)]
            assert sum(not state.closed for state in list(whisper._context._children)) <= 1  # the spare one

    def test_a_deadline_ends_all(self, adapter: WhisperLibraryAdapter) -> None:
        with pytest.raises(DeadlineExceeded):
            adapter.transcribe(LONG, FAST, timeout_seconds=0.2)

    @pytest.mark.parametrize("failing", [0, 1, 2])
    @pytest.mark.parametrize("slots", [1, 3])
    def test_a_chunk_that_fails_fails_the_request(
        self, monkeypatch: pytest.MonkeyPatch, failing: int, slots: int
    ) -> None:
        full = binding.State.full
        started: list[int] = []

        def fail(self: binding.State, *arguments: Any) -> None:
            started.append(len(started))
            if len(started) == failing + 1:
                raise EngineError("the graph could not be computed", -6)
            full(self, *arguments)

        with WhisperLibraryAdapter("micro", threads=1, concurrency=slots) as whisper:
            with monkeypatch.context() as patch:
                patch.setattr(binding.State, "full", fail)
                with pytest.raises(EngineError, match="could not be computed"):
                    whisper.transcribe(LONG, FAST)
            assert whisper.transcribe(assets.SAMPLES / "seen_020.flac", FAST).text == "Call the doctor on Thursday."

    def test_closing_the_adapter_ends_all(self) -> None:
        inside = threading.Event()
        whisper = WhisperLibraryAdapter("micro", threads=1, concurrency=2)
        running = whisper.stream(LONG, FAST, progress=lambda _: inside.set())
        assert inside.wait(60)
        whisper.close()
        with pytest.raises(TranscriptionCancelled, match="adapter was closed"):
            _ = running.result


def test_no_more_states_than_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[int] = []
    with WhisperLibraryAdapter("micro", threads=1, concurrency=2) as whisper:

        def count(_: float) -> None:
            alive.append(sum(not state.closed for state in list(whisper._context._children)))

        whisper.transcribe(LONG, FAST, audio_ctx=512, progress=count)
        engine = [thread for thread in threading.enumerate() if f"-{whisper.config.instance_id}_" in thread.name]
    assert max(alive) == 2
    assert len(engine) == 2


def test_silence_costs_no_inference(adapter: WhisperLibraryAdapter) -> None:
    heard: list[Segment] = []
    result = adapter.transcribe(np.zeros(70 * SAMPLE_RATE, np.float32), FAST)
    assert (result.text, result.segments, result.timings.inference) == ("", tuple(heard), 0.0)
