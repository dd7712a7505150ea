"""The phases of the served model, and what they mean for the requests inside."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.web.running_server import wait_until
from whisperlib import WhisperLibraryAdapter, assets
from whisperlib.errors import ModelNotFoundError, OverloadedError, UnavailableError
from whisperlib.options import CancelToken
from whisperlib.settings import Settings
from whisperlib.web.service import PROBE_THREADS, Service

SETTINGS = Settings(model_size="micro", threads=1, concurrency=1, http_threads=8, shutdown_seconds=0)


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service(SETTINGS)
    service.start()
    yield service
    service.stop(0)


def no_model(_name: str) -> WhisperLibraryAdapter:
    raise ModelNotFoundError("no such\nmodel")


def test_a_model_that_is_not_loaded_yet_admits_nobody() -> None:
    service = Service(SETTINGS)
    assert service.phase == "loading"
    with pytest.raises(UnavailableError, match="is still loading"), service.admitted():
        pass
    with pytest.raises(UnavailableError, match="is still loading"):
        _ = service.adapter


def test_a_loaded_model_transcribes(service: Service) -> None:
    assert service.phase == "ready"
    assert service.reason is None
    with service.admitted():
        assert service.in_flight == 1
        assert "train" in service.adapter.transcribe(assets.SAMPLES / "rms_010.flac").text
    assert service.in_flight == 0


def test_a_model_that_cannot_be_loaded_says_why_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    service = Service(SETTINGS, no_model)
    with pytest.raises(ModelNotFoundError):
        service.start()
    assert (service.phase, service.reason) == ("failed", "no such model")
    assert [record.getMessage() for record in caplog.records] == ["the model could not be loaded: no such model"]
    assert not caplog.records[0].exc_info
    with pytest.raises(UnavailableError, match="could not be loaded: no such model"), service.admitted():
        pass


def test_an_unforeseen_failure_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    service = Service(SETTINGS, lambda _name: 1 / 0)  # type: ignore[arg-type, return-value]
    with pytest.raises(ZeroDivisionError):
        service.start()
    assert service.reason == "ZeroDivisionError: division by zero"
    assert caplog.records[0].exc_info


def test_a_delayed_load_says_why_it_waits_and_a_stop_ends_the_wait() -> None:
    service = Service(SETTINGS, no_model)
    waiting = threading.Thread(target=lambda: service.start(delay_seconds=3600, reason="it crashed"))
    waiting.start()
    wait_until(lambda: service.reason == "it crashed", "the reason is told")
    assert service.phase == "loading"
    with pytest.raises(UnavailableError, match="is still loading: it crashed"), service.admitted():
        pass
    assert service.stop(0)
    waiting.join(60)
    assert not waiting.is_alive()
    assert service.reason == "it crashed"  # no_model was not called


def test_threads_are_kept_for_the_probes(service: Service) -> None:
    admitted = [service.admitted() for _ in range(SETTINGS.http_threads - PROBE_THREADS)]
    for one in admitted:
        one.__enter__()
    with pytest.raises(OverloadedError, match="4 requests are being answered"), service.admitted():
        pass
    admitted.pop().__exit__(None, None, None)
    with service.admitted():
        pass
    for one in admitted:
        one.__exit__(None, None, None)


def test_a_stop_lets_the_requests_inside_end_and_refuses_new_ones(service: Service) -> None:
    outcome: list[bool] = []
    stopping = threading.Thread(target=lambda: outcome.append(service.stop(3600)))
    with service.admitted() as token:
        stopping.start()
        wait_until(lambda: service.phase == "stopping", "the stop has begun")
        with pytest.raises(UnavailableError, match="is stopping"), service.admitted():
            pass
        assert service.adapter.transcribe(assets.SAMPLES / "rms_010.flac").text
        assert not token.cancelled
    stopping.join(60)
    assert outcome == [True]
    assert service.adapter.closed


def test_a_stop_cancels_what_has_not_ended_in_its_time(service: Service) -> None:
    with service.admitted() as token:
        assert not service.stop()  # shutdown_seconds is 0
        assert token.cancelled
    assert service.adapter.closed


def test_a_second_stop_shortens_the_first(service: Service) -> None:
    first = threading.Thread(target=lambda: service.stop(3600))
    ended = threading.Event()

    def request() -> None:
        with service.admitted() as token:
            token.add_listener(ended.set)
            inside.set()
            ended.wait(60)

    inside = threading.Event()
    inside_thread = threading.Thread(target=request)
    inside_thread.start()
    assert inside.wait(60)
    first.start()
    wait_until(lambda: service.phase == "stopping", "the first stop has begun")
    assert not service.stop(0)
    first.join(60)
    assert ended.is_set()
    assert not first.is_alive()


def test_a_model_that_comes_after_the_stop_is_freed_again() -> None:
    loading, go_on = threading.Event(), threading.Event()
    loaded: list[WhisperLibraryAdapter] = []

    def load(_name: str) -> WhisperLibraryAdapter:
        loading.set()
        go_on.wait(60)
        loaded.append(WhisperLibraryAdapter(settings=SETTINGS))
        return loaded[0]

    service = Service(SETTINGS, load)
    starting = threading.Thread(target=service.start)
    starting.start()
    assert loading.wait(60)
    assert service.stop()
    go_on.set()
    starting.join(60)
    assert loaded[0].closed
    assert service.phase == "stopping"


def test_an_admitted_request_has_a_token_of_its_own(service: Service) -> None:
    with service.admitted() as first, service.admitted() as second:
        assert isinstance(first, CancelToken)
        assert first is not second
