"""A transcription from the web: let in, stopped for several reasons, and written down."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from flask import Flask, g

from tests.audio_files import sndfile
from tests.loopback import serving
from tests.web.busy_engine import WAIT_SECONDS, busy
from tests.web.conftest import MakeApp
from tests.web.running_server import wait_until
from whisperlib import assets, audio
from whisperlib.errors import (
    AudioDecodeError,
    DeadlineExceeded,
    FetchTimeoutError,
    OptionError,
    OverloadedError,
    UnavailableError,
)
from whisperlib.options import CancelToken, TranscribeOptions
from whisperlib.results import Segment
from whisperlib.web import metrics, running
from whisperlib.web.errors import ApiError, problem_of
from whisperlib.web.running import Outcome, Progress, Remote, Upload
from whisperlib.web.service import Service

AUDIO = (assets.SAMPLES / "rms_010.flac").read_bytes()
TEXT = "The train to Paris leaves at five thirty-six from platform five."
OPTIONS = TranscribeOptions()


@pytest.fixture
def app(make_app: MakeApp) -> Flask:
    return make_app(threads=1, concurrency=1)


@pytest.fixture(scope="module")
def long_audio() -> bytes:
    """Five minutes of speech: what stops its transcription comes before its end."""
    samples = audio.load(assets.SAMPLES / "long_slt75.flac")
    return sndfile(np.tile(samples, 4), 16_000, "WAV", "PCM_16")


def upload(data: bytes = AUDIO) -> Upload:
    return Upload(io.BytesIO(data))


@contextmanager
def stopping(service: Service) -> Iterator[None]:
    """Stop the server at once; it has stopped when the block ends."""
    thread = threading.Thread(target=service.stop, args=(0,))
    thread.start()
    yield
    thread.join(WAIT_SECONDS)
    assert not thread.is_alive()


@contextmanager
def file_server(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """Serve files on the loopback; give the URL of one."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as server:
        yield f"http://127.0.0.1:{server.server_port}/a.flac"


def send_audio(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(AUDIO)))
    handler.end_headers()
    handler.wfile.write(AUDIO)


def test_an_upload_is_transcribed_and_the_request_counted_out(app: Flask, service: Service) -> None:
    with app.test_request_context():
        outcome = running.transcribe(upload(), OPTIONS)
    assert outcome.result.text == TEXT
    assert outcome.fetch_seconds == 0
    assert outcome.total_seconds >= outcome.result.timings.total
    assert service.in_flight == 0


def test_a_remote_file_is_fetched_and_transcribed(make_app: MakeApp) -> None:
    with file_server(send_audio) as url, make_app(url_allow="127.0.0.1").test_request_context():
        outcome = running.transcribe(Remote(url), OPTIONS)
        assert outcome.result.text == TEXT
        assert 0 < outcome.fetch_seconds < outcome.total_seconds
        assert g.record["fetch_seconds"] == outcome.fetch_seconds


def test_what_happened_is_written_down(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    observed: list[Any] = []
    monkeypatch.setattr(metrics, "observe", lambda *arguments: observed.append(arguments))
    with app.test_request_context():
        outcome = running.transcribe(upload(), OPTIONS)
        record = g.record
    timings = outcome.result.timings
    assert record["model"] == "micro"
    assert record["audio_seconds"] == outcome.result.duration
    assert record["decode_seconds"] == timings.decode
    assert record["queue_seconds"] == timings.queue
    assert record["vad_seconds"] == timings.vad
    assert record["inference_seconds"] == timings.inference
    assert record["real_time_factor"] == outcome.result.real_time_factor
    assert observed == [(outcome.result, 0.0)]


def test_a_stream_ends_with_the_outcome_and_has_its_segments_before(app: Flask, service: Service) -> None:
    options = TranscribeOptions(word_timestamps=True)
    with app.test_request_context():
        expected = running.transcribe(upload(assets.SAMPLES.joinpath("long_slt75.flac").read_bytes()), options).result
        events = list(running.stream(upload(assets.SAMPLES.joinpath("long_slt75.flac").read_bytes()), options))
        assert g.record["audio_seconds"] == expected.duration
    outcome = events.pop()
    assert isinstance(outcome, Outcome)
    assert outcome.result == expected
    assert tuple(event for event in events if isinstance(event, Segment)) == expected.segments
    assert events[0] == Progress(0.0)
    fractions = [event.fraction for event in events if isinstance(event, Progress)]
    assert fractions == sorted(fractions)
    assert len(set(fractions)) > 2
    assert fractions[-1] == 1.0
    assert service.in_flight == 0


def test_a_stream_is_counted_until_it_is_closed_or_dropped(app: Flask, service: Service) -> None:
    with app.test_request_context():
        for leave in (lambda events: events.close(), lambda events: None):
            with running.admitted():
                events: Any = running.stream(upload(), OPTIONS)
            assert service.in_flight == 1
            leave(events)
            del events
            assert service.in_flight == 0


def test_a_stream_that_is_closed_stops_its_work(app: Flask, service: Service, long_audio: bytes) -> None:
    with app.test_request_context():
        events: Any = running.stream(upload(long_audio), OPTIONS)
        next(event for event in events if isinstance(event, Segment))
        events.close()
    wait_until(lambda: service.adapter.workload().running == 0, "the engine is free")


def test_a_slow_reader_holds_no_slot(app: Flask, service: Service) -> None:
    with app.test_request_context():
        slow = running.stream(upload(), OPTIONS)
    with app.test_request_context():
        assert running.transcribe(upload(), OPTIONS).result.text == TEXT
    *_, outcome = slow
    assert isinstance(outcome, Outcome)
    assert outcome.result.text == TEXT


def test_a_stream_says_that_it_is_alive_while_it_waits(
    app: Flask, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "HEARTBEAT_SECONDS", 0.01)
    with app.test_request_context(), busy(service.adapter) as release:
        events = running.stream(upload(), OPTIONS)
        assert [next(events) for _ in range(3)] == [Progress(0.0)] * 3
        release.set()
        *_, outcome = events
    assert isinstance(outcome, Outcome)
    assert outcome.result.text == TEXT


def test_a_full_server_refuses_at_once_with_the_seconds_to_wait(make_app: MakeApp) -> None:
    app = make_app(threads=1, concurrency=1, max_wait_seconds=0)
    service: Service = app.extensions["whisper_service"]
    with app.test_request_context(), busy(service.adapter):
        with pytest.raises(OverloadedError, match="may wait for 0 s") as caught, running.admitted():
            pytest.fail("it was let in")
        assert caught.value.retry_after_seconds > 0
        assert service.in_flight == 0


def test_a_client_may_wait_for_less_than_the_server_lets_it(app: Flask, service: Service) -> None:
    with app.test_request_context(), busy(service.adapter):
        for run in (running.transcribe, running.stream):
            with pytest.raises(OverloadedError, match="may wait for 0 s"):
                run(upload(), TranscribeOptions(max_wait_seconds=0))
    assert service.in_flight == 0


def test_a_client_may_not_wait_for_more_than_the_server_lets_it(make_app: MakeApp) -> None:
    app = make_app(threads=1, concurrency=1, max_wait_seconds=0)
    service: Service = app.extensions["whisper_service"]
    options = TranscribeOptions(max_wait_seconds=1000)
    with app.test_request_context(), running.admitted(), busy(service.adapter), pytest.raises(OverloadedError):
        running.transcribe(upload(), options)


@pytest.mark.parametrize("run", [running.transcribe, running.stream])
def test_what_is_wrong_before_the_first_event_is_raised_at_once(
    app: Flask, service: Service, run: Callable[..., object]
) -> None:
    with app.test_request_context():
        with pytest.raises(AudioDecodeError):
            run(upload(b"not audio"), OPTIONS)
        with pytest.raises(OptionError, match="knows"):
            run(upload(), TranscribeOptions(language="yue"))
        with pytest.raises(DeadlineExceeded):
            run(upload(), TranscribeOptions(timeout_seconds=1e-9))
        assert service.in_flight == 0
        service.stop(0)
        with pytest.raises(UnavailableError, match="is stopping"):
            run(upload(), OPTIONS)


@pytest.mark.parametrize(
    ("settings", "options"),
    [({}, {"timeout_seconds": 0.2}), ({"request_timeout_seconds": 0.2}, {"timeout_seconds": 1000})],
)
def test_the_earlier_deadline_counts_and_is_named(
    make_app: MakeApp, long_audio: bytes, settings: Mapping[str, float], options: Mapping[str, float]
) -> None:
    app = make_app(threads=1, concurrency=1, **settings)
    with app.test_request_context():
        with pytest.raises(DeadlineExceeded, match=r"deadline of 0\.2 s") as caught:
            running.transcribe(upload(long_audio), TranscribeOptions(**options))
        assert problem_of(caught.value).status == 504
        with pytest.raises(DeadlineExceeded, match=r"deadline of 0\.2 s"):
            list(running.stream(upload(long_audio), TranscribeOptions(**options)))


def test_what_is_finished_at_the_deadline_is_given_to_who_asks_for_it(app: Flask, long_audio: bytes) -> None:
    options = TranscribeOptions(timeout_seconds=0.5, on_interrupt="partial")
    with app.test_request_context():
        outcome = running.transcribe(upload(long_audio), options)
        *_, streamed = running.stream(upload(long_audio), options)
    assert not outcome.result.complete
    assert isinstance(streamed, Outcome)
    assert not streamed.result.complete


def test_a_fetch_that_is_late_is_told_from_a_deadline_that_passed(make_app: MakeApp) -> None:
    release = threading.Event()

    def never(_: BaseHTTPRequestHandler) -> None:
        release.wait(WAIT_SECONDS)

    with file_server(never) as url:
        with make_app(url_allow="127.0.0.1").test_request_context(), pytest.raises(DeadlineExceeded, match=r"0\.2 s"):
            running.transcribe(Remote(url), TranscribeOptions(timeout_seconds=0.2))
        app = make_app(url_allow="127.0.0.1", fetch_timeout_seconds=0.2)
        with app.test_request_context(), pytest.raises(FetchTimeoutError):
            running.transcribe(Remote(url), OPTIONS)
        release.set()


def test_a_server_that_stops_cancels_who_waits(app: Flask, service: Service) -> None:
    errors: list[Exception] = []

    def request() -> None:
        with app.test_request_context(), pytest.raises(UnavailableError, match="is stopping") as caught:
            running.transcribe(upload(), OPTIONS)
        errors.append(caught.value)

    with busy(service.adapter) as release:
        thread = threading.Thread(target=request)
        thread.start()
        wait_until(lambda: service.adapter.workload().waiting == 1, "the request waits")
        with stopping(service):
            thread.join(WAIT_SECONDS)
            release.set()
    problem = problem_of(errors[0])
    assert (problem.status, problem.retry) == (503, True)
    assert problem.retry_after_seconds


def test_a_server_that_stops_cancels_a_stream_that_runs(app: Flask, service: Service, long_audio: bytes) -> None:
    with app.test_request_context():
        events = running.stream(upload(long_audio), OPTIONS)
        next(event for event in events if isinstance(event, Segment))
        with stopping(service), pytest.raises(UnavailableError, match="is stopping"):
            list(events)
    assert service.in_flight == 0


def test_a_server_that_stops_cancels_a_fetch(make_app: MakeApp) -> None:
    app = make_app(url_allow="127.0.0.1")
    service: Service = app.extensions["whisper_service"]
    asked, release = threading.Event(), threading.Event()

    def never(_: BaseHTTPRequestHandler) -> None:
        asked.set()
        release.wait(WAIT_SECONDS)

    def stop() -> None:
        assert asked.wait(WAIT_SECONDS)
        service.stop(0)

    thread = threading.Thread(target=stop)
    thread.start()
    with file_server(never) as url, app.test_request_context():
        with pytest.raises(UnavailableError, match="is stopping"):
            running.transcribe(Remote(url), OPTIONS)
        release.set()
    thread.join()


def test_a_client_that_goes_away_cancels_its_own_request_only(
    app: Flask, service: Service, long_audio: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched: list[CancelToken] = []

    @contextmanager
    def cancel_when_gone(_environ: Mapping[str, Any], token: CancelToken) -> Iterator[None]:
        """A double: Flask's client has no socket that could be watched."""
        watched.append(token)
        try:
            yield
        finally:
            watched.remove(token)

    monkeypatch.setattr(running, "cancel_when_gone", cancel_when_gone)
    with app.test_request_context():
        events = running.stream(upload(long_audio), OPTIONS)
        next(event for event in events if isinstance(event, Segment))
        watched[0].cancel()
        with pytest.raises(ApiError) as caught:
            list(events)
        assert problem_of(caught.value).status == 499
        assert g.record["audio_seconds"] > 200
        assert not watched
    with app.test_request_context():
        assert running.transcribe(upload(), OPTIONS).result.text == TEXT


def test_admission_within_admission_is_the_same(app: Flask, service: Service) -> None:
    with app.test_request_context():
        with running.admitted() as outer, running.admitted() as inner:
            assert outer is inner
            assert running.transcribe(upload(), OPTIONS).result.text == TEXT
            assert service.in_flight == 1
        assert service.in_flight == 0
        assert "admission" not in g
