"""The adapter: what it transcribes, how it stops, and how several requests share it."""

from __future__ import annotations

import gc
import io
import logging
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest

from tests.web.running_server import wait_until
from whisperlib import CancelToken, TranscribeOptions, WhisperLibraryAdapter, assets, system
from whisperlib.adapter import _check_sharing
from whisperlib.binding import FullArguments, State, VadContext
from whisperlib.errors import (
    AudioError,
    ClosedError,
    DeadlineExceeded,
    EngineError,
    OptionError,
    OverloadedError,
    TranscriptionCancelled,
)
from whisperlib.pcm import SAMPLE_RATE, Samples
from whisperlib.results import Segment
from whisperlib.settings import Settings

Sample = Callable[[str], Samples]
TO_WORDS = jiwer.Compose(
    [
        jiwer.ToLowerCase(),
        jiwer.SubstituteRegexes({"-": " "}),
        jiwer.SubstituteRegexes({r"[^\w\s]": ""}),
        jiwer.Strip(),
        jiwer.ReduceToListOfListOfWords(),
    ]
)
SHORT = [reference for reference in assets.sample_references() if "long" not in reference["file"]]
SPOKEN = [reference for reference in SHORT if reference["text"]]


def word_error_rate(said: list[str], heard: list[str]) -> float:
    return float(jiwer.wer(said, heard, reference_transform=TO_WORDS, hypothesis_transform=TO_WORDS))


class TestText:
    def test_word_error_rate_of_the_short_samples(self, adapter: WhisperLibraryAdapter) -> None:
        heard = [adapter.transcribe(assets.SAMPLES / row["file"]) for row in SPOKEN]
        assert word_error_rate([row["text"] for row in SPOKEN], [result.text for result in heard]) <= 0.09
        assert [result.language for result in heard] == [row["language"] for row in SPOKEN]
        exact = [row["file"] for row, result in zip(SPOKEN, heard, strict=True) if row["text"] == result.text]
        assert exact == [row["file"] for row in SPOKEN if row["micro_f16_exact"]]

    def test_several_windows(self, adapter: WhisperLibraryAdapter, references: dict[str, dict[str, Any]]) -> None:
        reference = references["long_slt75"]
        result = adapter.transcribe(assets.SAMPLES / reference["file"])
        assert word_error_rate([reference["text"]], [result.text]) <= 0.05
        assert result.duration == pytest.approx(76.98, abs=0.01)
        for spoken, segment in zip(reference["segments"], result.segments, strict=True):
            assert segment.start == pytest.approx(spoken["start"], abs=0.2)
            assert segment.end == pytest.approx(spoken["end"], abs=0.2)

    @pytest.mark.parametrize("row", SPOKEN, ids=lambda row: str(row["file"]))
    def test_segment_times(self, adapter: WhisperLibraryAdapter, row: dict[str, Any]) -> None:
        result = adapter.transcribe(assets.SAMPLES / row["file"], language=row["language"])
        assert len(result.segments) == len(row["segments"])
        for spoken, segment in zip(row["segments"], result.segments, strict=True):
            assert segment.start == pytest.approx(spoken["start"], abs=0.25)
            assert segment.end == pytest.approx(spoken["end"], abs=0.25)

    def test_silence_and_noise_give_nothing(self, adapter: WhisperLibraryAdapter, silence: Samples) -> None:
        noise = np.random.default_rng(7).normal(0, 0.05, 5 * 16_000).astype(np.float32)
        hum = (0.1 * np.sin(2 * np.pi * 50 * np.arange(5 * 16_000) / 16_000)).astype(np.float32)
        for quiet in (silence, noise, hum):
            result = adapter.transcribe(quiet)
            assert (result.text, result.segments, result.language) == ("", (), None)
            assert result.timings.inference == 0.0

    def test_values_of_a_segment(self, adapter: WhisperLibraryAdapter, sample: Sample) -> None:
        (segment,) = adapter.transcribe(sample("seen_020")).segments
        assert segment.id == 0
        assert -1.0 < segment.avg_logprob <= 0.0
        assert 0.5 < segment.probability <= 1.0
        assert 0.0 <= segment.no_speech_prob < 0.5
        assert segment.temperature == 0.0
        assert segment.compression_ratio == pytest.approx(28 / 36, abs=0.01)
        assert len(segment.tokens) > 4
        assert segment.words == ()


class TestTimes:
    def test_vad_keeps_the_original_timeline(self, adapter: WhisperLibraryAdapter, sample: Sample) -> None:
        """The same sentence after pauses of many lengths: its times move by exactly the pause."""
        clip = sample("seen_020")
        alone = adapter.transcribe(clip, language="en", word_timestamps=True)
        pause = np.zeros(12 * 16_000, np.float32)
        result = adapter.transcribe(np.concatenate([pause, clip, pause, clip]), language="en", word_timestamps=True)
        offsets = (12.0, 24.0 + len(clip) / 16_000)
        assert [segment.text for segment in result.segments] == [alone.text] * 2
        for segment, offset in zip(result.segments, offsets, strict=True):
            assert segment.start == pytest.approx(alone.segments[0].start + offset, abs=0.25)
            assert segment.end == pytest.approx(alone.segments[0].end + offset, abs=0.25)
            for word, single in zip(segment.words, alone.words, strict=True):
                assert word.text == single.text
                assert word.start == pytest.approx(single.start + offset, abs=0.35)

    def test_words_make_up_the_text_in_order(self, adapter: WhisperLibraryAdapter) -> None:
        result = adapter.transcribe(assets.SAMPLES / "long_slt75.flac", word_timestamps=True)
        for segment in result.segments:
            assert " ".join(word.text for word in segment.words) == segment.text
            times = [time for word in segment.words for time in (word.start, word.end)]
            assert times == sorted(times)
            assert segment.start <= times[0]
            assert times[-1] <= segment.end
            assert all(0.0 < word.probability <= 1.0 for word in segment.words)

    def test_offset_and_duration(self, adapter: WhisperLibraryAdapter, references: dict[str, Any]) -> None:
        spoken = references["long_slt75"]["segments"][3]
        result = adapter.transcribe(
            assets.SAMPLES / "long_slt75.flac",
            offset_seconds=spoken["start"] - 0.3,
            duration_seconds=spoken["end"] - spoken["start"] + 0.6,
        )
        assert result.text == spoken["text"]
        assert result.segments[0].start == pytest.approx(spoken["start"], abs=0.25)
        assert result.duration == pytest.approx(76.98, abs=0.01)

    def test_an_offset_past_the_end_is_an_error(self, adapter: WhisperLibraryAdapter, sample: Sample) -> None:
        with pytest.raises(AudioError, match="offset_seconds = 99"):
            adapter.transcribe(sample("seen_020"), offset_seconds=99)

    def test_max_segment_length(self, adapter: WhisperLibraryAdapter, sample: Sample) -> None:
        whole = adapter.transcribe(sample("rms_010"), language="en")
        short = adapter.transcribe(sample("rms_010"), language="en", max_segment_length=20)
        assert [segment.id for segment in short.segments] == list(range(len(short.segments)))
        assert all(len(segment.text) <= 20 for segment in short.segments)
        assert short.text == whole.text
        assert [t for s in short.segments for t in s.tokens] == list(whole.segments[0].tokens)
        times = [time for segment in short.segments for time in (segment.start, segment.end)]
        assert times == sorted(times)

    def test_times_never_pass_the_end_of_short_audio(self, adapter: WhisperLibraryAdapter, sample: Sample) -> None:
        clip = sample("telephone_005")[: int(0.9 * 16_000)]
        for vad in (True, False):
            for segment in adapter.transcribe(clip, language="en", vad=vad).segments:
                assert segment.end <= 0.9


class TestOptions:
    def test_an_object_and_single_options_mean_the_same(self, adapter: WhisperLibraryAdapter, sample: Sample) -> None:
        options = TranscribeOptions(language="de", word_timestamps=True)
        by_object = adapter.transcribe(sample("german_001"), options)
        assert (
            by_object.segments
            == adapter.transcribe(sample("german_001"), language="German", word_timestamps=True).segments
        )
        assert adapter.transcribe(sample("german_001"), options, word_timestamps=False).words == ()

    @pytest.mark.parametrize(
        "bad",
        [
            {"beam_size": 9},
            {"best_of": 0},
            {"language": "klingon"},
            {"offset_seconds": -1},
            {"temperature": 1.1},
            {"audio_ctx": 300},
            {"threads": 10_000},
            {"no_such_option": 1},
            {"language": "yue"},
        ],
        ids=str,
    )
    def test_out_of_range(self, adapter: WhisperLibraryAdapter, sample: Sample, bad: dict[str, Any]) -> None:
        with pytest.raises(OptionError, match=next(iter(bad))):
            adapter.transcribe(sample("seen_020"), **bad)

    def test_audio_that_does_not_fit_audio_ctx(self, adapter: WhisperLibraryAdapter) -> None:
        with pytest.raises(OptionError, match="would be skipped"):
            adapter.transcribe(assets.SAMPLES / "long_slt75.flac", audio_ctx=512)
        assert adapter.transcribe(assets.SAMPLES / "seen_020.flac", audio_ctx=512).text

    def test_a_prompt_without_previous_text_reaches_every_window(self, adapter: WhisperLibraryAdapter) -> None:
        result = adapter.transcribe(
            assets.SAMPLES / "long_slt75.flac",
            language="en",
            initial_prompt="Close the front door.",
            condition_on_previous_text=False,
        )
        assert len(result.segments) > 20

    @pytest.mark.parametrize("source", ["path", "text path", "bytes", "file", "array", "float64", "stereo"])
    def test_sources(self, adapter: WhisperLibraryAdapter, sample: Sample, source: str) -> None:
        path = assets.SAMPLES / "seen_020.flac"
        clip = sample("seen_020")
        made: dict[str, Callable[[], Any]] = {
            "path": lambda: path,
            "text path": lambda: str(path),
            "bytes": path.read_bytes,
            "file": lambda: io.BytesIO(path.read_bytes()),
            "array": lambda: clip,
            "float64": lambda: clip.astype(np.float64),
            "stereo": lambda: np.stack([clip, clip], axis=1),
        }
        assert adapter.transcribe(made[source]()).text == "Call the doctor on Thursday."

    def test_progress_rises_to_one(self, adapter: WhisperLibraryAdapter) -> None:
        seen: list[float] = []
        adapter.transcribe(assets.SAMPLES / "long_slt75.flac", language="en", progress=seen.append)
        assert seen == sorted(seen)
        assert seen[0] >= 0.0
        assert seen[-1] == 1.0
        assert len(seen) > 3


class TestStream:
    def test_gives_what_transcribe_gives(self, adapter: WhisperLibraryAdapter) -> None:
        whole = adapter.transcribe(assets.SAMPLES / "long_slt75.flac", language="en")
        stream = adapter.stream(assets.SAMPLES / "long_slt75.flac", language="en")
        assert tuple(stream) == whole.segments
        assert stream.result == whole
        assert list(stream) == []

    def test_segments_come_before_the_end(self, adapter: WhisperLibraryAdapter) -> None:
        """The first window's segments arrive while the request is held in its second window."""
        go_on = threading.Event()
        windows = 0

        def hold(_: float) -> None:
            nonlocal windows
            windows += 1
            if windows == 2:
                assert go_on.wait(60)

        with adapter.stream(assets.SAMPLES / "long_slt75.flac", language="en", progress=hold) as stream:
            first = next(stream)
            go_on.set()
            assert first.text == "The code is five zero one nine."
            assert len(list(stream)) > 20

    def test_a_slow_reader_holds_nothing_up(self, adapter: WhisperLibraryAdapter, sample: Sample) -> None:
        streams = [adapter.stream(sample("seen_020"), language="en") for _ in range(4)]
        assert adapter.transcribe(sample("seen_002"), language="en").text == "I can see nineteen dogs."
        assert [[s.text for s in stream] for stream in streams] == [["Call the doctor on Thursday."]] * 4

    def test_an_error_comes_at_the_end(self, adapter: WhisperLibraryAdapter, sample: Sample) -> None:
        def fail(_: float) -> None:
            raise KeyError("mine")

        stream = adapter.stream(sample("seen_020"), progress=fail)
        with pytest.raises(KeyError):
            list(stream)

    def test_closing_stops_the_request(self, adapter: WhisperLibraryAdapter) -> None:
        stream = adapter.stream(assets.SAMPLES / "long_slt75.flac", language="en")
        next(stream)
        stream.close()
        stream.close()
        with pytest.raises(TranscriptionCancelled):
            _ = stream.result

    def test_dropping_it_stops_the_request(self, adapter: WhisperLibraryAdapter) -> None:
        stream = adapter.stream(assets.SAMPLES / "long_slt75.flac", language="en")
        next(stream)
        job = stream._job
        del stream
        with pytest.raises(TranscriptionCancelled):
            job.result()


class TestInterruption:
    def test_a_deadline_gives_what_is_finished(self, adapter: WhisperLibraryAdapter) -> None:
        """The clock is the test's: the deadline passes when the second window begins."""
        token = CancelToken()
        segments: list[Segment] = []

        def second_window(fraction: float) -> None:
            if fraction > 0.2:
                token.cancel()

        options = TranscribeOptions(language="en", cancel=token, progress=second_window)
        source = assets.SAMPLES / "long_slt75.flac"
        with pytest.raises(TranscriptionCancelled) as caught:
            adapter.transcribe(source, options)
        partial = caught.value.partial
        assert partial is not None
        assert not partial.complete
        segments += partial.segments
        assert segments[0].text == "The code is five zero one nine."
        assert segments[-1].end < 40
        kept = adapter.transcribe(source, options.replace(on_interrupt="partial"))
        assert (kept.complete, kept.segments) == (False, ())  # the token is cancelled already

    def test_a_cancel_while_speech_is_looked_for(
        self, adapter: WhisperLibraryAdapter, sample: Sample, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        token = CancelToken()
        listen = VadContext.speech_probabilities
        minutes: list[int] = []

        def cancelled_in_the_first_minute(vad: VadContext, samples: Samples, check: Callable[[], object]) -> Samples:
            def counted() -> None:
                minutes.append(len(minutes))
                token.cancel()
                check()

            return listen(vad, samples, counted)

        monkeypatch.setattr(VadContext, "speech_probabilities", cancelled_in_the_first_minute)
        with pytest.raises(TranscriptionCancelled):
            adapter.transcribe(np.resize(sample("seen_020"), 180 * SAMPLE_RATE), cancel=token)
        assert minutes == [0]

    def test_a_passed_deadline(self, adapter: WhisperLibraryAdapter, sample: Sample) -> None:
        with pytest.raises(DeadlineExceeded, match=r"0\.0001 s"):
            adapter.transcribe(sample("seen_020"), timeout_seconds=1e-4)
        kept = adapter.transcribe(sample("seen_020"), timeout_seconds=1e-4, on_interrupt="partial")
        assert not kept.complete

    def test_a_queued_request_ends_at_its_deadline_or_cancel(
        self, adapter: WhisperLibraryAdapter, sample: Sample
    ) -> None:
        """Both slots are held: what waits behind them still ends when it should."""
        go_on, held = threading.Event(), threading.Barrier(3)

        def hold(fraction: float) -> None:
            if fraction == 0.0:
                held.wait(60)
                assert go_on.wait(60)

        with ThreadPoolExecutor(4) as pool:
            running = [pool.submit(adapter.transcribe, sample("seen_020"), progress=hold) for _ in range(2)]
            held.wait(60)
            token = CancelToken()
            waiting = pool.submit(adapter.transcribe, sample("seen_002"), cancel=token)
            late = pool.submit(adapter.transcribe, sample("seen_002"), timeout_seconds=0.05)
            with pytest.raises(DeadlineExceeded):
                late.result(60)
            token.cancel()
            with pytest.raises(TranscriptionCancelled):
                waiting.result(60)
            with adapter.stream(sample("seen_002"), timeout_seconds=0.05) as stream, pytest.raises(DeadlineExceeded):
                list(stream)
            go_on.set()
            assert {future.result().text for future in running} == {"Call the doctor on Thursday."}

    def test_closing_the_adapter_ends_what_runs_and_what_waits(self, sample: Sample) -> None:
        inside = threading.Event()
        adapter = WhisperLibraryAdapter("micro", threads=1, concurrency=1)
        source = assets.SAMPLES / "long_slt75.flac"
        running = adapter.stream(source, language="en", progress=lambda _: inside.set())
        assert inside.wait(60)
        waiting = [adapter.stream(sample("seen_020")) for _ in range(2)]
        adapter.close()
        adapter.close()
        for stream in (running, *waiting):
            with pytest.raises(TranscriptionCancelled, match="adapter was closed"):
                _ = stream.result
        for call in (adapter.transcribe, adapter.stream, adapter.detect_language):
            with pytest.raises(ClosedError):
                call(sample("seen_020"))


class TestConcurrency:
    def test_every_caller_gets_their_own_text(self, adapter: WhisperLibraryAdapter) -> None:
        rows = [row for row in SPOKEN if row["micro_f16_exact"]] * 3
        with ThreadPoolExecutor(8) as pool:
            heard = list(pool.map(lambda row: adapter.transcribe(assets.SAMPLES / row["file"]).text, rows))
        assert heard == [row["text"] for row in rows]

    def test_no_more_run_than_there_are_states(self, adapter: WhisperLibraryAdapter, sample: Sample) -> None:
        alive: list[int] = []

        def count(_: float) -> None:
            alive.append(sum(not state.closed for state in list(adapter._context._children)))

        threads = [
            threading.Thread(target=lambda: adapter.transcribe(sample("seen_020"), language="en", progress=count))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(alive) >= 8
        assert max(alive) == 2
        engine = [thread for thread in threading.enumerate() if f"-{adapter.config.instance_id}_" in thread.name]
        assert len(engine) == 2

    def test_requests_start_in_the_order_in_which_they_came(self, sample: Sample) -> None:
        started: list[int] = []
        go_on, held = threading.Event(), threading.Event()

        def hold(fraction: float) -> None:
            if fraction == 0.0:
                held.set()
                assert go_on.wait(60)

        with WhisperLibraryAdapter("micro", threads=1, concurrency=1) as adapter:
            first = adapter.stream(sample("seen_020"), progress=hold)
            assert held.wait(60)
            later = [
                adapter.stream(sample("seen_020"), language="en", progress=lambda _, n=number: started.append(n))
                for number in range(5)
            ]
            go_on.set()
            for stream in (first, *later):
                assert stream.result.text == "Call the doctor on Thursday."
        assert list(dict.fromkeys(started)) == [0, 1, 2, 3, 4]

    def test_too_many_threads_are_warned_of(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(system, "cpu_allowance", lambda: system.CpuAllowance(2, 2.0, 8, 8))
        _check_sharing(4, 2)
        assert "slow each other down" in caplog.text
        for bad in ((0, None), (None, 0), (None, 65), (513, None)):
            with pytest.raises(OptionError, match="give 1 to"):
                _check_sharing(*bad)

    def test_the_cores_are_shared_by_a_measurement_that_is_remembered(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(system, "cpu_allowance", lambda: system.CpuAllowance(2, None, 2, 2))
        settings = Settings(measure_threads=True)
        with WhisperLibraryAdapter("micro", settings=settings) as first:
            assert first.config.sharing_reason.startswith("measured, by threads: 1: ")
            assert (first.config.threads, first.config.concurrency) in {(1, 2), (2, 1)}
        with WhisperLibraryAdapter("micro", settings=settings) as second:
            assert second.config.sharing_reason.startswith("remembered, ")
            assert second.config.threads == first.config.threads
        with WhisperLibraryAdapter("micro", settings=settings, threads=1) as third:
            assert (third.config.sharing_reason, third.config.concurrency) == ("threads set; 2 cores may be used", 2)

    def test_a_measurement_is_warm_up_enough(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sample: Sample
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(system, "cpu_allowance", lambda: system.CpuAllowance(2, None, 2, 2))
        runs: list[float] = []

        def full(state: State, arguments: FullArguments, samples: Samples, *more: Any, **named: Any) -> None:
            runs.append(len(samples) / SAMPLE_RATE)
            real(state, arguments, samples, *more, **named)

        real = State.full
        monkeypatch.setattr(State, "full", full)
        settings = Settings(measure_threads=True)
        with WhisperLibraryAdapter("micro", settings=settings) as whisper:
            assert runs == [len(sample("seen_020")) / SAMPLE_RATE] * 4
            assert whisper.workload().real_time_factor > 0
        runs.clear()
        with WhisperLibraryAdapter("micro", settings=settings):
            assert runs == [1.0, 1.0]


class TestLanes:
    def test_a_clip_overtakes_a_long_file_between_two_windows(self, references: dict[str, dict[str, Any]]) -> None:
        happened: list[str] = []
        with WhisperLibraryAdapter("micro", threads=1, concurrency=1) as whisper, ThreadPoolExecutor() as pool:
            first_window = threading.Event()

            def hold_until_the_clip_waits(fraction: float) -> None:
                happened.append("long")
                while not first_window.is_set() and not whisper.workload().waiting:
                    first_window.wait(0.01)
                first_window.set()

            long = pool.submit(
                whisper.transcribe, assets.SAMPLES / "long_slt75.flac", progress=hold_until_the_clip_waits
            )
            while not happened:
                first_window.wait(0.01)
            clip = whisper.transcribe(
                assets.SAMPLES / "rms_010.flac",
                progress=lambda fraction: happened.append("clip" if fraction == 1 else ""),
            )
            alone = whisper.transcribe(assets.SAMPLES / "long_slt75.flac")
            assert long.result() == alone
        assert clip.text == references["rms_010"]["text"]
        events = [event for event in happened if event]
        assert "long" in events[events.index("clip") :]
        assert long.result().timings.queue > clip.timings.inference * 0.9

    def test_a_wait_that_is_too_long_is_refused_at_once(self, sample: Sample) -> None:
        with WhisperLibraryAdapter("micro", threads=1, concurrency=1) as whisper:
            assert whisper.transcribe(sample("rms_010"), max_wait_seconds=0).text
            with whisper.stream(assets.SAMPLES / "long_slt75.flac") as long:
                assert whisper.workload().running == 1
                with pytest.raises(OverloadedError, match="try again in"):
                    whisper.transcribe(sample("rms_010"), max_wait_seconds=0)
                long.close()

    def test_windows_without_text_are_counted(self, adapter: WhisperLibraryAdapter, silence: Samples) -> None:
        result = adapter.transcribe(silence, language="en", vad=False)
        assert (result.text, result.dropped_windows) == ("", 1)
        assert adapter.transcribe(assets.SAMPLES / "long_slt75.flac").dropped_windows == 0


class TestLanguage:
    @pytest.mark.parametrize("row", SPOKEN, ids=lambda row: str(row["file"]))
    def test_detects(self, adapter: WhisperLibraryAdapter, row: dict[str, Any]) -> None:
        guess = adapter.detect_language(assets.SAMPLES / row["file"])
        assert guess.language == row["language"]
        assert guess.probability == max(guess.probabilities.values())
        assert sum(guess.probabilities.values()) == pytest.approx(1.0, abs=1e-3)

    def test_silence_has_no_language(self, adapter: WhisperLibraryAdapter, silence: Samples) -> None:
        with pytest.raises(AudioError, match="no speech"):
            adapter.detect_language(silence)


def test_the_config_and_the_log_say_what_runs(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "whisperlib"):
        adapter = WhisperLibraryAdapter("micro", threads=1, concurrency=1)
    with adapter:
        config = adapter.config
        assert (config.model, config.device, config.compute_type, config.threads) == ("micro", "cpu", "f16", 1)
        assert config.path == assets.MICRO_MODEL
        assert config.beam_size == 5
        assert config.resident_bytes > 10_000_000
        line = next(record.message for record in caplog.records if "loaded micro" in record.message)
        sharing = f"1 × 1 threads ({config.sharing_reason})"
        running = f"encoder {config.encoder} ({config.encoder_reason})"
        for part in (config.instance_id, "f16", "on cpu", running, sharing, "warmed up in", "MB resident"):
            assert part in line
        assert running.startswith("encoder ggml (ggml-micro-f16.bin has no OpenVINO encoder beside it: ")
        assert config.sharing_reason.startswith("threads and concurrency set; ")


def test_two_adapters_share_a_process(adapter: WhisperLibraryAdapter, sample: Sample) -> None:
    with WhisperLibraryAdapter("micro", threads=1, concurrency=1) as other:
        assert other.config.instance_id != adapter.config.instance_id
        assert other.transcribe(sample("seen_020")) == adapter.transcribe(sample("seen_020"))


def test_audio_is_gone_with_its_request_and_not_when_the_collector_comes_by(
    adapter: WhisperLibraryAdapter, sample: Sample
) -> None:
    samples = sample("seen_020").copy()
    there = weakref.ref(samples)
    gc.disable()
    try:
        adapter.transcribe(samples, word_timestamps=True)
        del samples
        wait_until(lambda: there() is None, "nothing refers to it")
    finally:
        gc.enable()


def test_an_unknown_device_is_an_error() -> None:
    with pytest.raises(OptionError, match="device = 'tpu'"):
        WhisperLibraryAdapter("micro", device="tpu")


def test_cuda_without_a_driver_is_a_clear_error() -> None:
    from whisperlib import detect_cuda_availability  # noqa: PLC0415

    if detect_cuda_availability()[0]:
        pytest.skip("this machine has a GPU")
    with pytest.raises(OptionError, match="NVIDIA driver"):
        WhisperLibraryAdapter("micro", device="cuda")


def test_a_failed_engine_call_keeps_its_code() -> None:
    assert EngineError("failed", -6).code == -6
