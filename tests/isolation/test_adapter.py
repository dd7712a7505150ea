"""The engine in a process of its own does what the one in this process does."""

from __future__ import annotations

import gc
import io
import logging
import mmap
import os
import resource
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.isolation.conftest import has_gone, isolated
from tests.web.running_server import wait_until
from whisperlib import CancelToken, TranscribeOptions, Transcription, WhisperLibraryAdapter, assets, audio, engine
from whisperlib.cache import value
from whisperlib.errors import (
    AudioDecodeError,
    AudioError,
    AudioNotFoundError,
    ClosedError,
    DeadlineExceeded,
    EngineError,
    ModelFileError,
    OptionError,
    OverloadedError,
    TranscriptionCancelled,
)
from whisperlib.isolation import IsolatedAdapter
from whisperlib.pcm import SAMPLE_RATE
from whisperlib.settings import Settings

SHORT = assets.SAMPLES / "seen_020.flac"
TEXT = "Call the doctor on Thursday."
LONG = audio.load(assets.SAMPLES / "long_slt75.flac")[: 35 * SAMPLE_RATE]  # two windows
FAST = TranscribeOptions(profile="fast")
MINUTES = np.tile(LONG, 20)
RUNNING = TranscribeOptions(vad=False, beam_size=1)  # it runs at once, and as long as a test needs it


Engines = tuple[IsolatedAdapter, WhisperLibraryAdapter]


@pytest.fixture
def engines(whisper: IsolatedAdapter, adapter: WhisperLibraryAdapter) -> Engines:
    return whisper, adapter


def as_bytes(result: Transcription) -> bytes:
    """Return all of a result but the times that it took."""
    return value.encode(result)


class TestResults:
    @pytest.mark.parametrize("beam_size", [1, 5])
    def test_they_are_those_of_the_engine_in_this_process(
        self, whisper: IsolatedAdapter, adapter: WhisperLibraryAdapter, beam_size: int
    ) -> None:
        options = TranscribeOptions(beam_size=beam_size, word_timestamps=beam_size > 1, fit_audio_ctx=True)
        for row in assets.sample_references():
            file = LONG if "long" in row["file"] else assets.SAMPLES / row["file"]
            result, expected = (one.transcribe(file, options) for one in (whisper, adapter))
            assert result == expected, row["file"]
            assert as_bytes(result) == as_bytes(expected), row["file"]

    def test_a_stream_gives_each_segment_once_in_order(
        self, whisper: IsolatedAdapter, adapter: WhisperLibraryAdapter
    ) -> None:
        expected = adapter.transcribe(LONG, beam_size=1)
        with whisper.stream(LONG, beam_size=1) as stream:
            segments = list(stream)
        assert tuple(segments) == expected.segments == stream.result.segments
        assert stream.cache == "off"

    def test_a_cut_keeps_the_timeline(self, whisper: IsolatedAdapter, adapter: WhisperLibraryAdapter) -> None:
        cut = FAST.replace(offset_seconds=8.0, duration_seconds=6.5, max_segment_length=12)
        assert as_bytes(whisper.transcribe(LONG, cut)) == as_bytes(adapter.transcribe(LONG, cut))

    def test_audio_may_be_bytes_a_file_or_an_array(self, whisper: IsolatedAdapter) -> None:
        for source in (SHORT.read_bytes(), io.BytesIO(SHORT.read_bytes()), audio.load(SHORT)):
            assert whisper.transcribe(source, profile="fast").text == TEXT

    def test_the_language_is_told(self, whisper: IsolatedAdapter, adapter: WhisperLibraryAdapter) -> None:
        file = assets.SAMPLES / "german_001.flac"
        assert whisper.detect_language(file) == adapter.detect_language(file)

    def test_times_tell_of_both_processes(self, whisper: IsolatedAdapter) -> None:
        timings = whisper.transcribe(SHORT, beam_size=1).timings
        assert timings.decode > 0
        assert timings.inference > 0
        assert 0 <= timings.queue < 1

    def test_ten_at_once_get_their_own(self, engines: Engines) -> None:
        names = ("seen_020", "rms_010", "german_001", "ked_020", "telephone_005")
        files = [assets.SAMPLES / f"{name}.flac" for name in names] * 2
        whisper, adapter = engines
        with ThreadPoolExecutor(10) as pool:
            results = list(pool.map(lambda file: whisper.transcribe(file, FAST), files))
        assert results == [adapter.transcribe(file, FAST) for file in files]


class TestConfig:
    def test_it_is_the_process_s(self, whisper: IsolatedAdapter, adapter: WhisperLibraryAdapter) -> None:
        config = whisper.config
        assert config.isolation == "process"
        assert adapter.config.isolation == "none"
        assert config.process_id != os.getpid()
        assert Path(f"/proc/{config.process_id}/exe").exists()
        assert 20e6 < config.resident_bytes < 1e9
        same = ("model", "path", "threads", "concurrency", "library_directory", "compute_type")
        assert [getattr(config, name) for name in same] == [getattr(adapter.config, name) for name in same]

    @pytest.mark.parametrize(("isolation", "kind"), [("none", WhisperLibraryAdapter), ("process", IsolatedAdapter)])
    def test_the_setting_chooses(self, isolation: str, kind: type) -> None:
        loaded = engine.start("micro", settings=Settings(isolation=isolation, threads=1))
        try:
            assert type(loaded) is kind
            assert loaded.config.isolation == isolation
        finally:
            loaded.close()

    def test_the_workload_is_the_process_s(self, whisper: IsolatedAdapter) -> None:
        with whisper.stream(MINUTES, RUNNING), whisper.stream(MINUTES, RUNNING), whisper.stream(MINUTES, RUNNING):
            wait_until(lambda: whisper.workload().running == 2, "two run")
            work = whisper.workload()
        assert (work.waiting, work.wait_seconds > 0, work.queued_audio_seconds > 600) == (1, True, True)


class TestErrors:
    @pytest.mark.parametrize(
        ("kind", "source", "options"),
        [
            (OptionError, SHORT, {"beam_size": 9}),
            (OptionError, SHORT, {"threads": 500}),
            (AudioDecodeError, b"not audio", {}),
            (AudioNotFoundError, "/nowhere/at/all.wav", {}),
            (AudioError, SHORT, {"offset_seconds": 99}),
            (OptionError, LONG, {"audio_ctx": 256}),
        ],
        ids=str,
    )
    def test_they_are_the_same(self, engines: Engines, kind: type[Exception], source: Any, options: Any) -> None:
        told = []
        for one in engines:
            with pytest.raises(kind) as caught:
                one.transcribe(source, **options)
            told.append((type(caught.value), str(caught.value)))
        assert told[0] == told[1]

    def test_what_is_wrong_at_once_is_raised_before_a_stream_is_given(self, whisper: IsolatedAdapter) -> None:
        with pytest.raises(AudioError, match="past the end"):
            whisper.stream(SHORT, offset_seconds=99)

    def test_a_wait_that_is_too_long_is_refused(self, whisper: IsolatedAdapter) -> None:
        with whisper.stream(MINUTES, RUNNING), whisper.stream(MINUTES, RUNNING):
            wait_until(lambda: whisper.workload().running == 2, "two run")
            with pytest.raises(OverloadedError, match="try again in") as caught:
                whisper.stream(MINUTES, RUNNING, max_wait_seconds=0.0)
        assert caught.value.retry_after_seconds > 0

    def test_a_model_that_cannot_be_loaded_is_the_same_error(self, tmp_path: Path) -> None:
        broken = tmp_path / "ggml-broken.bin"
        broken.write_bytes(assets.MICRO_MODEL.read_bytes()[:100_000])
        told = []
        for load in (isolated, lambda model: WhisperLibraryAdapter(model, threads=1)):
            with pytest.raises(ModelFileError) as caught:
                load(broken)
            told.append(str(caught.value))
        assert told[0] == told[1]

    def test_audio_that_has_no_room_is_an_error(self, whisper: IsolatedAdapter) -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
        try:
            with pytest.raises(EngineError, match="cannot be handed to the engine's process: File too large"):
                whisper.transcribe(LONG)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert whisper.transcribe(SHORT, FAST).text == TEXT

    def test_an_error_of_the_caller_s_own_callback_is_raised(self, whisper: IsolatedAdapter) -> None:
        def fail(_fraction: float) -> None:
            raise ZeroDivisionError("the caller's own")

        with pytest.raises(ZeroDivisionError, match="the caller's own"):
            whisper.transcribe(MINUTES, RUNNING, progress=fail)
        wait_until(lambda: whisper.workload().running == 0, "it was stopped")


class TestInterrupts:
    def test_a_cancel_gives_what_is_finished(self, whisper: IsolatedAdapter) -> None:
        for on_interrupt in ("raise", "partial"):
            token = CancelToken()
            with whisper.stream(MINUTES, RUNNING, cancel=token, on_interrupt=on_interrupt) as stream:
                first = next(stream)
                token.cancel()
                if on_interrupt == "partial":
                    rest, partial = list(stream), stream.result
                else:
                    rest = []
                    with pytest.raises(TranscriptionCancelled, match="the request was cancelled") as caught:
                        rest.extend(stream)
                    assert caught.value.partial
                    partial = caught.value.partial
            assert (first, *rest) == partial.segments
            assert not partial.complete
            assert partial.duration == pytest.approx(len(MINUTES) / SAMPLE_RATE)

    def test_a_request_that_waits_can_be_cancelled(self, whisper: IsolatedAdapter) -> None:
        with whisper.stream(MINUTES, RUNNING), whisper.stream(MINUTES, RUNNING):
            token = CancelToken()
            waiting = whisper.stream(MINUTES, RUNNING, cancel=token)
            wait_until(lambda: whisper.workload().waiting == 1, "it waits")
            token.cancel()
            with pytest.raises(TranscriptionCancelled) as caught:
                _ = waiting.result
        assert caught.value.partial
        assert caught.value.partial.segments == ()

    def test_a_deadline_counts_from_the_call(self, whisper: IsolatedAdapter) -> None:
        with pytest.raises(DeadlineExceeded, match=r"the deadline of 0\.3 s has passed") as caught:
            whisper.transcribe(MINUTES, RUNNING, timeout_seconds=0.3)
        assert caught.value.partial
        assert whisper.transcribe(MINUTES, RUNNING, timeout_seconds=0.01, on_interrupt="partial").segments == ()

    def test_to_drop_a_stream_stops_it(self, whisper: IsolatedAdapter) -> None:
        stream = whisper.stream(MINUTES, RUNNING)
        next(stream)
        del stream
        gc.collect()
        wait_until(lambda: whisper.workload().running == 0, "it was stopped")


class TestProgress:
    def test_it_is_reported_up_to_the_end_with_the_caller_s_context(self, whisper: IsolatedAdapter) -> None:
        variable: ContextVar[str] = ContextVar("variable", default="unset")
        variable.set("the caller's")
        seen: list[tuple[float, str]] = []
        whisper.transcribe(LONG, beam_size=1, progress=lambda fraction: seen.append((fraction, variable.get())))
        fractions = [fraction for fraction, _ in seen]
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1.0
        assert {value for _, value in seen} == {"the caller's"}

    def test_a_slow_one_holds_up_nobody_else(self, whisper: IsolatedAdapter) -> None:
        held, release = threading.Event(), threading.Event()

        def hold(_fraction: float) -> None:
            held.set()
            release.wait(60)

        with whisper.stream(SHORT, beam_size=1, progress=hold) as stream:
            assert held.wait(60)
            assert whisper.transcribe(SHORT, profile="fast").text == TEXT
            release.set()
            assert stream.result.text == TEXT


class TestLog:
    def test_lines_keep_level_and_request(self, caplog: pytest.LogCaptureFixture, shared_environment: None) -> None:
        request: ContextVar[str] = ContextVar("request", default="none")
        seen: list[tuple[str, int, str, str]] = []

        class Handler(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                seen.append((record.name, record.levelno, record.getMessage(), request.get()))

        for name in ("whisperlib", "whisperlib.native"):
            caplog.set_level(logging.DEBUG, logger=name)
        handler = Handler()
        logging.getLogger("whisperlib").addHandler(handler)
        try:
            with isolated() as whisper, ThreadPoolExecutor(1) as pool:

                def ask(name: str) -> None:
                    request.set(name)
                    whisper.transcribe(SHORT, beam_size=1)

                for name in ("first", "second"):
                    pool.submit(ask, name).result()
        finally:
            logging.getLogger("whisperlib").removeHandler(handler)
        loaded = [line for line in seen if line[0] == "whisperlib.adapter" and ": loaded micro" in line[2]]
        assert [(level, name) for _, level, _, name in loaded] == [(logging.INFO, "none")]
        detector = [line for line in seen if "whisper_vad_detect_speech" in line[2]]
        assert {(logger, level) for logger, level, *_ in detector} == {("whisperlib.native", logging.DEBUG)}
        # The first is of the warm-up, which nobody asked for.
        assert list(dict.fromkeys(name for *_, name in detector)) == ["none", "first", "second"]


class TestCache:
    def test_results_are_kept_by_the_process(self, tmp_path: Path) -> None:
        with isolated(cache=str(tmp_path)) as whisper:
            assert whisper.cache
            made = whisper.stream(SHORT, beam_size=1)
            assert (made.cache, made.result.cache) == ("miss", "miss")
            found = whisper.stream(SHORT, beam_size=1)
            assert (found.cache, found.result.cache, list(found)) == ("hit", "hit", list(made.result.segments))
            assert as_bytes(found.result) == as_bytes(made.result)
            assert (whisper.cache.stats().size_bytes or 0) > 100
        with isolated(cache=str(tmp_path)) as another:
            assert another.transcribe(SHORT, beam_size=1).cache == "hit"

    def test_one_inference_for_all_who_ask_at_once(self, tmp_path: Path) -> None:
        with (
            isolated(cache=str(tmp_path), concurrency=1) as whisper,
            whisper.stream(MINUTES, RUNNING, cache=False) as running,
        ):
            next(running)
            first, second = (whisper.stream(SHORT, beam_size=1) for _ in range(2))
            running.close()
            assert (first.result.cache, second.result.cache) == ("miss", "shared")
            assert first.result.text == TEXT
            assert as_bytes(first.result) == as_bytes(second.result)

    def test_there_is_none_where_it_is_off(self, whisper: IsolatedAdapter) -> None:
        assert whisper.cache is None


class TestClosing:
    def test_the_process_ends_and_its_memory_with_it(self) -> None:
        whisper = isolated()
        process_id = whisper.config.process_id
        with whisper:
            whisper.transcribe(SHORT, beam_size=1)
            assert resident_bytes(process_id) > 20e6
        assert has_gone(process_id)
        assert whisper.closed
        for ask in (whisper.transcribe, whisper.stream, whisper.detect_language):
            with pytest.raises(ClosedError, match="the adapter was closed"):
                ask(SHORT)
        whisper.close()
        assert whisper.workload().running == 0
        assert whisper.config.process_id == process_id

    def test_what_runs_and_waits_is_stopped(self) -> None:
        whisper = isolated(concurrency=1)
        running, waiting = whisper.stream(MINUTES, RUNNING), whisper.stream(MINUTES, RUNNING, on_interrupt="partial")
        first = next(running)
        whisper.close()
        with pytest.raises(TranscriptionCancelled, match="the adapter was closed during the request") as caught:
            list(running)
        assert caught.value.partial
        assert caught.value.partial.segments[0] == first
        assert waiting.result.segments == ()

    def test_two_at_once_know_nothing_of_each_other(self, whisper: IsolatedAdapter) -> None:
        with isolated(concurrency=1) as other:
            assert other.config.process_id != whisper.config.process_id
            with ThreadPoolExecutor(2) as pool:
                results = list(pool.map(lambda one: one.transcribe(SHORT, beam_size=1), (whisper, other)))
        assert [result.text for result in results] == [TEXT, TEXT]
        assert whisper.transcribe(SHORT, profile="fast").text == TEXT

    def test_one_that_is_dropped_ends_but_not_under_a_stream(self) -> None:
        process_ids = []

        def stream_of_a_dropped_one() -> Any:
            whisper = isolated()
            process_ids.append(whisper.config.process_id)
            return whisper.stream(LONG, beam_size=1)

        assert stream_of_a_dropped_one().result.text.startswith("The code is five zero one nine.")
        gc.collect()
        wait_until(lambda: has_gone(process_ids[0]), "the process has ended")


class TestLeftovers:
    def test_a_request_has_its_own_samples_in_reach_and_no_others(self) -> None:
        clips = MINUTES, MINUTES, LONG[:12_345]  # two run, the last waits
        expected = sorted(-(-clip.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE for clip in clips)
        with isolated() as whisper, ExitStack() as streams:
            process_id = whisper.config.process_id
            whisper.transcribe(MINUTES[: 70 * SAMPLE_RATE], FAST)
            wait_until(lambda: not audio_sizes_in(process_id), "its samples are gone")
            for clip in clips:
                streams.enter_context(whisper.stream(clip, RUNNING))
            wait_until(lambda: sorted(audio_sizes_in(process_id)) == expected, "each has a mapping of its own size")

    def test_a_hundred_requests_leave_nothing(self) -> None:
        clip = audio.load(SHORT)[: SAMPLE_RATE // 4]

        def ask(number: int) -> None:
            if number % 10:
                whisper.transcribe(clip, FAST)
            elif number % 20:
                with pytest.raises(AudioError):
                    whisper.transcribe(clip, offset_seconds=9)
            else:
                with whisper.stream(clip, FAST):
                    pass  # dropped

        with isolated() as whisper:
            process_id = whisper.config.process_id
            ask(1)
            wait_until(lambda: audio_mapped_in(process_id) == 0, "the first one's samples are gone")
            before = files_of("self"), files_of(process_id)
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(ask, range(100)))
            wait_until(lambda: whisper.workload().running == 0, "all have ended")
            wait_until(lambda: audio_mapped_in(process_id) == 0, "no samples are left in the process")
            assert audio_mapped_in("self") == 0
            assert (files_of("self"), files_of(process_id)) == before


def files_of(process: int | str) -> int:
    return len(os.listdir(f"/proc/{process}/fd"))  # noqa: PTH208


def audio_mapped_in(process: int | str) -> int:
    return Path(f"/proc/{process}/maps").read_text(encoding="utf-8").count("/memfd:whisperlib-audio")


def audio_sizes_in(process_id: int) -> list[int]:
    lines = Path(f"/proc/{process_id}/maps").read_text(encoding="utf-8").splitlines()
    spans = [line.split()[0].split("-") for line in lines if "/memfd:whisperlib-audio" in line]
    return [int(end, 16) - int(start, 16) for start, end in spans]


def resident_bytes(process_id: int) -> int:
    status = Path(f"/proc/{process_id}/status").read_text(encoding="utf-8")
    return int(status.split("VmRSS:")[1].split()[0]) * 1024
