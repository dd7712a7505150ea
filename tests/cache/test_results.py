"""The adapter with a cache: the real engine and the micro model, counted by what the model runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.web.running_server import wait_until
from whisperlib import CancelToken, TranscriptionStream, WhisperLibraryAdapter, assets, audio
from whisperlib.errors import ClosedError, DeadlineExceeded, InterruptedTranscription, OptionError
from whisperlib.pcm import SAMPLE_RATE
from whisperlib.request import Request
from whisperlib.results import Transcription
from whisperlib.settings import Settings

SHORT = assets.SAMPLES / "rms_010.flac"
LONG = audio.load(assets.SAMPLES / "long_slt75.flac")[: 40 * SAMPLE_RATE]  # two windows
WAIT_SECONDS = 60.0  # on a busy machine


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "kept"


def open_adapter(place: object) -> WhisperLibraryAdapter:
    return WhisperLibraryAdapter("micro", threads=1, concurrency=2, settings=Settings(cache=str(place)))


@pytest.fixture
def whisper(directory: Path) -> Iterator[WhisperLibraryAdapter]:
    with open_adapter(directory) as whisper:
        yield whisper


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """The requests that reached an engine thread."""
    seen: list[Request] = []
    run = Request.run

    def run_one(self: Request, *given: Any) -> Transcription:
        seen.append(self)
        return run(self, *given)

    monkeypatch.setattr(Request, "run", run_one)
    return seen


class Held:
    """A stream whose inference is held until it is let go."""

    def __init__(self, whisper: WhisperLibraryAdapter, **options: Any) -> None:
        self.running, self.release = threading.Event(), threading.Event()

        def hold(_: float) -> None:
            self.running.set()
            assert self.release.wait(WAIT_SECONDS)

        self.stream = whisper.stream(LONG, progress=hold, **options)
        assert self.running.wait(WAIT_SECONDS)


def followers(whisper: WhisperLibraryAdapter, count: int) -> list[TranscriptionStream]:
    streams = [whisper.stream(LONG) for _ in range(count)]
    assert [stream.cache for stream in streams] == ["shared"] * count
    return streams


def test_the_second_time_the_model_does_not_run(whisper: WhisperLibraryAdapter, runs: list[Request]) -> None:
    first = whisper.transcribe(SHORT, word_timestamps=True)
    second = whisper.transcribe(SHORT.read_bytes(), word_timestamps=True, profile="accurate", timeout_seconds=60)
    assert (first.cache, second.cache, len(runs)) == ("miss", "hit", 1)
    assert second == first
    assert second.words
    assert second.timings.decode > 0
    assert second.timings.total == second.timings.decode
    assert whisper.transcribe(SHORT, beam_size=1).cache == "miss"
    assert len(runs) == 2


def test_another_adapter_of_the_same_model_finds_it(whisper: WhisperLibraryAdapter, directory: Path) -> None:
    first = whisper.transcribe(SHORT)
    with open_adapter(directory) as other:
        assert other.transcribe(SHORT) == first
        assert other.transcribe(SHORT).cache == "hit"


def test_a_hit_replays_a_stream_in_order_and_a_stream_is_kept(whisper: WhisperLibraryAdapter) -> None:
    first = whisper.stream(LONG)
    segments = list(first)
    fractions: list[float] = []
    second = whisper.stream(LONG, progress=fractions.append)
    assert (first.cache, second.cache) == ("miss", "hit")
    assert list(second) == segments
    assert second.result == first.result == whisper.transcribe(LONG)
    assert fractions == [1.0]


def test_a_request_may_do_without(whisper: WhisperLibraryAdapter, runs: list[Request], directory: Path) -> None:
    for _ in range(2):
        assert whisper.transcribe(SHORT, cache=False).cache == "off"
    assert len(runs) == 2
    assert not directory.exists()


def test_without_a_place_nothing_is_kept(adapter: WhisperLibraryAdapter, runs: list[Request]) -> None:
    assert [adapter.transcribe(SHORT).cache for _ in range(2)] == ["off", "off"]
    assert adapter.cache is None
    assert len(runs) == 2


def test_ten_at_once_cost_one_inference(whisper: WhisperLibraryAdapter, runs: list[Request]) -> None:
    gate = threading.Barrier(10)

    def ask(_: int) -> Transcription:
        gate.wait()
        return whisper.transcribe(SHORT)

    with ThreadPoolExecutor(10) as pool:
        results = list(pool.map(ask, range(10)))
    assert len(runs) == 1
    assert all(result == results[0] for result in results)
    assert [result.cache for result in results].count("miss") == 1


def test_streams_share_one_inference_and_all_get_its_segments(
    whisper: WhisperLibraryAdapter, runs: list[Request]
) -> None:
    held = Held(whisper)
    others = followers(whisper, 3)
    held.release.set()
    segments = list(held.stream)
    assert len(segments) > 5
    for other in others:
        assert list(other) == segments
        assert (other.result, other.result.cache) == (held.stream.result, "shared")
        assert other.result.timings.inference == 0
    assert len(runs) == 1


@pytest.mark.parametrize("leave", ["close", "drop"])
def test_a_leader_that_leaves_hands_over_to_the_next(
    whisper: WhisperLibraryAdapter, runs: list[Request], leave: str
) -> None:
    held = Held(whisper)
    others = followers(whisper, 3)
    others[0].close()  # it shall not lead
    if leave == "close":
        held.stream.close()
    else:
        del held.stream
    held.release.set()
    results = [other.result for other in others[1:]]
    assert [result.cache for result in results] == ["miss", "shared"]
    assert results[0] == results[1] == whisper.transcribe(LONG, cache=False)
    assert len(runs) == 3
    assert len(list(others[1])) == len(results[0].segments)


def test_a_leader_that_is_cancelled_in_the_queue_hands_over(
    whisper: WhisperLibraryAdapter, runs: list[Request]
) -> None:
    blocking = [Held(whisper, cache=False) for _ in range(2)]
    cancel = CancelToken()
    leader = whisper.stream(SHORT, cancel=cancel)
    follower = whisper.stream(SHORT)
    cancel.cancel()
    with pytest.raises(InterruptedTranscription):
        _ = leader.result
    for held in blocking:
        held.stream.close()
        held.release.set()
    assert follower.result.cache == "miss"
    assert len(runs) == 3


@pytest.mark.parametrize("on_interrupt", ["raise", "partial"])
def test_a_leader_whose_deadline_passes_hands_over_and_keeps_nothing(
    whisper: WhisperLibraryAdapter, on_interrupt: str
) -> None:
    held = Held(whisper, timeout_seconds=1.0, on_interrupt=on_interrupt)
    follower = followers(whisper, 1)[0]
    wait_until(held.stream._job.interrupt.reason, "its deadline has passed")
    held.release.set()
    if on_interrupt == "raise":
        with pytest.raises(DeadlineExceeded):
            _ = held.stream.result
    else:
        assert not held.stream.result.complete
    assert follower.result.complete
    assert follower.result.cache == "miss"
    assert whisper.transcribe(LONG) == follower.result


def test_a_follower_s_own_deadline_and_cancel_hold(whisper: WhisperLibraryAdapter, runs: list[Request]) -> None:
    held = Held(whisper)
    cancel = CancelToken()
    late, cancelled = whisper.stream(LONG, timeout_seconds=0.2), whisper.stream(LONG, cancel=cancel)
    partial = whisper.stream(LONG, timeout_seconds=0.2, on_interrupt="partial")
    cancel.cancel()
    with pytest.raises(InterruptedTranscription):
        _ = cancelled.result
    with pytest.raises(DeadlineExceeded):
        list(late)
    assert not partial.result.complete
    assert not held.stream._job.future.done()
    held.release.set()
    assert held.stream.result.complete
    assert len(runs) == 1


def test_a_request_does_not_wait_for_one_of_the_background(whisper: WhisperLibraryAdapter, runs: list[Request]) -> None:
    held = Held(whisper, beam_size=1, background=True)
    behind, first = whisper.stream(LONG, beam_size=1, background=True), whisper.stream(LONG, beam_size=1)
    assert (behind.cache, first.cache) == ("shared", "miss")
    assert first.result.complete
    assert not behind._job.future.done()
    held.release.set()
    assert behind.result == held.stream.result == first.result
    assert len(runs) == 2


def test_a_leader_hands_over_to_a_request_before_the_background(whisper: WhisperLibraryAdapter) -> None:
    held = Held(whisper, beam_size=1)
    behind, ahead = whisper.stream(LONG, beam_size=1, background=True), whisper.stream(LONG, beam_size=1)
    assert (behind.cache, ahead.cache) == ("shared", "shared")
    held.stream.close()
    held.release.set()
    assert (ahead.result.cache, behind.result.cache) == ("miss", "shared")


def test_nobody_follows_a_background_request_that_leads_after_another(whisper: WhisperLibraryAdapter) -> None:
    held, leads, release = Held(whisper, beam_size=1), threading.Event(), threading.Event()

    def hold(_: float) -> None:
        leads.set()
        assert release.wait(WAIT_SECONDS)

    behind = whisper.stream(LONG, beam_size=1, background=True, progress=hold)
    held.stream.close()
    held.release.set()
    assert leads.wait(WAIT_SECONDS)
    assert whisper.transcribe(LONG, beam_size=1).cache == "miss"
    release.set()
    assert behind.result.complete


def test_what_is_wrong_with_what_was_asked_is_shared(whisper: WhisperLibraryAdapter, runs: list[Request]) -> None:
    blocking = [Held(whisper, cache=False) for _ in range(2)]
    streams = [whisper.stream(LONG, audio_ctx=256) for _ in range(3)]
    for held in blocking:
        held.stream.close()
        held.release.set()
    messages = set()
    for stream in streams:
        with pytest.raises(OptionError, match="audio_ctx = 256") as caught:
            _ = stream.result
        messages.add(id(caught.value))
    assert len(messages) == 3
    assert len(runs) == 3


def test_a_failure_of_ours_is_not_shared(whisper: WhisperLibraryAdapter, runs: list[Request]) -> None:
    def fail(_: float) -> None:
        assert held.release.wait(WAIT_SECONDS)
        raise ZeroDivisionError

    held = Held(whisper, cache=False)
    leader = whisper.stream(LONG, progress=fail)
    follower = followers(whisper, 1)[0]
    held.release.set()
    with pytest.raises(ZeroDivisionError):
        _ = leader.result
    assert follower.result.cache == "miss"
    assert len(runs) == 3


def test_a_follower_s_own_mistake_is_its_own(whisper: WhisperLibraryAdapter) -> None:
    def fail(_: float) -> None:
        raise ZeroDivisionError

    held = Held(whisper)
    wrong, right = whisper.stream(LONG, progress=fail), whisper.stream(LONG)
    held.release.set()
    with pytest.raises(ZeroDivisionError):
        _ = wrong.result
    assert right.result == held.stream.result


def test_closing_ends_all(directory: Path) -> None:
    with open_adapter(directory) as whisper:
        held = Held(whisper)
        others = followers(whisper, 2)
        closing = threading.Thread(target=whisper.close)
        closing.start()
        wait_until(lambda: whisper.closed, "it closes")
        held.release.set()
        for stream in (held.stream, *others):
            with pytest.raises((InterruptedTranscription, ClosedError)):
                _ = stream.result
        closing.join(WAIT_SECONDS)
    assert not list(directory.rglob("*/*/*"))


def test_a_hit_needs_no_slot_and_no_turn(whisper: WhisperLibraryAdapter) -> None:
    expected = whisper.transcribe(SHORT)
    blocking = [Held(whisper, cache=False) for _ in range(2)]
    assert whisper.transcribe(SHORT, max_wait_seconds=0) == expected
    for held in blocking:
        held.stream.close()
        held.release.set()


def test_one_changed_sample_is_another_request(whisper: WhisperLibraryAdapter, runs: list[Request]) -> None:
    samples = np.zeros(16_000, np.float32)
    whisper.transcribe(samples)
    samples[5] = 1e-6
    assert whisper.transcribe(samples).cache == "miss"
    assert whisper.transcribe(samples).cache == "hit"
    assert len(runs) == 2


@pytest.mark.parametrize(
    "damage", [lambda kept: kept[:-3], lambda kept: b"", lambda kept: kept.replace(b"Paris", b"Rome!")]
)
def test_a_damaged_result_is_made_anew(
    whisper: WhisperLibraryAdapter, directory: Path, damage: Callable[[bytes], bytes]
) -> None:
    first = whisper.transcribe(SHORT)
    (file,) = (path for path in directory.rglob("*") if path.is_file())
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert (again := whisper.transcribe(SHORT)) == first
    assert again.cache == "miss"
    assert file.read_bytes() == whole
    assert whisper.transcribe(SHORT).cache == "hit"


def test_a_place_that_cannot_be_written_fails_nothing(tmp_path: Path) -> None:
    place = tmp_path / "a file"
    place.write_text("in the way", encoding="utf-8")
    with open_adapter(place) as whisper:
        assert [whisper.transcribe(SHORT).cache for _ in range(2)] == ["miss", "miss"]


def test_a_model_that_cannot_be_hashed_fails_nothing(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_: object) -> str:
        raise FileNotFoundError(2, "No such file")

    monkeypatch.setattr("whisperlib.cache.key.Engine.fingerprint", gone)
    with open_adapter(directory) as whisper:
        assert [whisper.transcribe(SHORT).cache for _ in range(2)] == ["off", "off"]


def test_results_are_kept_in_redis(redis_url: str) -> None:
    with open_adapter(redis_url) as whisper, open_adapter(redis_url) as other:
        first = whisper.transcribe(SHORT, word_timestamps=True)
        second = other.transcribe(SHORT, word_timestamps=True)
        assert (second, second.cache) == (first, "hit")
