"""The engine's process crashes, or its parent does."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.isolation.conftest import crash, has_gone, isolated, replaced
from tests.web.running_server import wait_until
from whisperlib import CancelToken, TranscribeOptions, assets, audio
from whisperlib.errors import (
    DeadlineExceeded,
    EngineCrashedError,
    EngineError,
    ForkedProcessError,
    OverloadedError,
    TranscriptionCancelled,
    UnavailableError,
)
from whisperlib.isolation import IsolatedAdapter, process, supervisor
from whisperlib.isolation.messages import Load

SHORT = assets.SAMPLES / "seen_020.flac"
TEXT = "Call the doctor on Thursday."
MINUTES = np.tile(audio.load(assets.SAMPLES / "long_slt75.flac"), 10)
RUNNING = TranscribeOptions(vad=False, beam_size=1)  # it runs at once, and as long as a test needs it


@pytest.fixture(autouse=True)
def _many_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tests of this module, which share a process, end it as often as they like."""
    monkeypatch.setattr(supervisor, "CRASH_SECONDS", 0.0)


@contextmanager
def slow_start(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have processes that are started within the block wait for its end before they load."""
    may_load = threading.Event()
    send = process.EngineProcess._send

    def send_later(self: process.EngineProcess, order: object, file: int | None = None) -> bool:
        if isinstance(order, Load):
            threading.Thread(target=lambda: (may_load.wait(60), send(self, order))).start()
            return True
        return send(self, order, file)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(process.EngineProcess, "_send", send_later)
        try:
            yield
        finally:
            may_load.set()


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_crash_fails_what_is_in_the_process_and_nothing_else(
    whisper: IsolatedAdapter, number: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    running, another = (whisper.stream(MINUTES, RUNNING) for _ in range(2))
    first = next(running)
    caplog.clear()
    with replaced(whisper) as process_id:
        os.kill(process_id, number)
        for stream in (running, another):
            with pytest.raises(EngineCrashedError) as caught:
                list(stream)
            message = str(caught.value)
            assert f"the engine's process ended by {number.name}" in message
            assert message.endswith("while 2 requests were in it; it is being started again: send the request again")
            assert ("where memory runs out" in message) == (number == signal.SIGKILL)
        assert whisper.transcribe(SHORT, profile="fast").text == TEXT  # waits for the other process
    assert first.text
    (line,) = (record for record in caplog.records if record.levelno == logging.ERROR)
    assert f"ended by {number.name}" in line.getMessage()
    if number != signal.SIGKILL:
        assert "Fatal Python error" in line.getMessage()


def test_a_crash_between_requests_is_noticed_by_nobody(whisper: IsolatedAdapter) -> None:
    whisper.transcribe(SHORT, beam_size=1)
    with replaced(whisper):
        crash(whisper)
        with ThreadPoolExecutor(4) as pool:
            texts = list(pool.map(lambda _: whisper.transcribe(SHORT, profile="fast").text, range(4)))
    assert texts == [TEXT] * 4


def test_what_comes_before_a_crash_is_noticed_is_sent_to_the_next_process(
    whisper: IsolatedAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_ended, may_notice = threading.Event(), threading.Event()
    supervised = whisper._supervisor._newest
    assert supervised
    notice = supervised._on_end

    def notice_later(ended: process.EngineProcess) -> Any:
        has_ended.set()
        may_notice.wait(60)
        return notice(ended)

    monkeypatch.setattr(supervised, "_on_end", notice_later)
    with replaced(whisper) as process_id, ThreadPoolExecutor(1) as pool:
        os.kill(process_id, signal.SIGKILL)
        assert has_ended.wait(60)
        with pytest.raises(OverloadedError, match=r"may wait for 0\.01 s"):
            whisper.transcribe(SHORT, max_wait_seconds=0.01)
        waiting = pool.submit(whisper.transcribe, SHORT, profile="fast")
        wait_until(lambda: whisper.workload().waiting == 1, "it waits for the next process")
        may_notice.set()
        assert waiting.result().text == TEXT


def test_what_comes_meanwhile_waits_as_long_as_it_may(
    whisper: IsolatedAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadPoolExecutor(2) as pool, replaced(whisper), slow_start(monkeypatch):
        crash(whisper)
        with pytest.raises(OverloadedError, match=r"may wait for 0\.01 s: try again later"):
            whisper.transcribe(SHORT, max_wait_seconds=0.01)
        with pytest.raises(DeadlineExceeded, match=r"the deadline of 0\.02 s has passed"):
            whisper.stream(SHORT, timeout_seconds=0.02)
        partial = whisper.stream(SHORT, timeout_seconds=0.02, on_interrupt="partial", language="en")
        assert (partial.result.segments, partial.result.complete, partial.result.language) == ((), False, "en")
        with pytest.raises(DeadlineExceeded):
            whisper.detect_language(SHORT, timeout_seconds=0.02)
        token = CancelToken()
        cancelled = pool.submit(whisper.transcribe, SHORT, cancel=token)
        patient = pool.submit(whisper.transcribe, SHORT, profile="fast", max_wait_seconds=60.0, timeout_seconds=60.0)
        wait_until(lambda: whisper.workload().waiting == 2, "both wait")
        token.cancel()
        with pytest.raises(TranscriptionCancelled, match="the request was cancelled"):
            cancelled.result()
        assert not patient.done()
    assert patient.result().text == TEXT


def test_a_close_meanwhile_ends_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    whisper = isolated()
    with ThreadPoolExecutor(1) as pool, slow_start(monkeypatch):
        crash(whisper)
        waiting = pool.submit(whisper.transcribe, SHORT)
        wait_until(lambda: whisper.workload().waiting == 1, "it waits")
        newest = whisper._supervisor._newest
        assert newest
        whisper.close()
        with pytest.raises(TranscriptionCancelled, match="the adapter was closed"):
            waiting.result()
        assert has_gone(newest.id)


def test_one_that_crashes_time_and_again_is_left_alone_for_a_while(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "CRASH_SECONDS", 600.0)
    monkeypatch.setattr(supervisor, "MAX_CRASHES", 2)
    with isolated() as whisper:
        with replaced(whisper) as process_id:
            os.kill(process_id, signal.SIGSEGV)
        os.kill(whisper.config.process_id, signal.SIGSEGV)
        wait_until(lambda: "left alone" in caplog.text, "it is left alone")
        for _ in range(2):
            with pytest.raises(UnavailableError, match="2 times within 600 s: it is left alone for 60 s") as caught:
                whisper.transcribe(SHORT)
            assert 1 <= caught.value.retry_after_seconds <= 60
        assert whisper.workload().wait_seconds == 0
        monkeypatch.setattr(whisper._supervisor, "_rests_until", 0.0)  # as if the time had passed
        assert whisper.transcribe(SHORT, profile="fast").text == TEXT


def test_a_crash_while_it_loads_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with slow_start(monkeypatch), ThreadPoolExecutor(1) as pool:
        started: list[process.EngineProcess] = []
        begin = process.EngineProcess.__init__

        def note(self: process.EngineProcess, *given: object) -> None:
            begin(self, *given)  # type: ignore[arg-type]
            started.append(self)

        monkeypatch.setattr(process.EngineProcess, "__init__", note)
        loading = pool.submit(isolated)
        wait_until(lambda: started, "it was started")
        os.kill(started[0].id, signal.SIGSEGV)
        with pytest.raises(EngineCrashedError, match="SIGSEGV while it loaded the model"):
            loading.result()


def test_a_model_that_is_gone_when_another_is_started_is_told(tmp_path: Path) -> None:
    model = tmp_path / "ggml-copy.bin"
    model.write_bytes(assets.MICRO_MODEL.read_bytes())
    with isolated(model) as whisper:
        model.unlink()
        crash(whisper)
        with pytest.raises(FileNotFoundError, match=r"ggml-copy\.bin"):
            whisper.transcribe(SHORT)


def test_a_process_that_cannot_be_started_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(EngineError, match="the engine's process cannot be started: .*/no/such/python"):
        isolated()


def test_a_terminal_s_and_a_service_manager_s_signals_are_the_parent_s(whisper: IsolatedAdapter) -> None:
    process_id = whisper.config.process_id
    assert os.getsid(process_id) == process_id != os.getsid(0)
    with whisper.stream(SHORT, beam_size=1) as stream:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(process_id, number)
        assert stream.result.text == TEXT
    assert whisper.transcribe(SHORT, profile="fast").text == TEXT
    assert whisper.config.process_id == process_id


PARENT = """
import sys
from whisperlib.isolation import IsolatedAdapter
from whisperlib.settings import Settings
whisper = IsolatedAdapter("micro", settings=Settings(threads=1))
stream = whisper.stream(sys.argv[1])
print(whisper.config.process_id, flush=True)
{then}
"""


def parent(then: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", PARENT.format(then=then), str(assets.SAMPLES / "long_slt75.flac")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_the_process_ends_with_a_parent_that_is_killed() -> None:
    # A fork of the parent that lives on must not hold it.
    then = "import os, time\nif os.fork() == 0:\n    print(os.getpid(), flush=True)\ntime.sleep(600)"
    with parent(then) as killed:
        assert killed.stdout
        process_id, fork_id = (int(killed.stdout.readline()) for _ in range(2))
        try:
            assert not has_gone(process_id)
            killed.kill()
            killed.wait()
            wait_until(lambda: has_gone(process_id), "the engine's process has ended")
            assert not has_gone(fork_id)
        finally:
            os.kill(fork_id, signal.SIGKILL)


def test_a_parent_that_closes_nothing_ends_without_noise() -> None:
    with parent("print(next(stream).text)") as ended:
        assert ended.stdout
        process_id = int(ended.stdout.readline())
        out, err = ended.communicate(timeout=60)
    assert (ended.returncode, out, err) == (0, "The code is five zero one nine.\n", "")
    wait_until(lambda: has_gone(process_id), "the engine's process has ended")


def test_a_fork_is_refused_and_harms_nothing(whisper: IsolatedAdapter) -> None:
    process_id = os.fork()
    if process_id == 0:
        status = 1
        try:
            whisper.close()
            whisper.transcribe(SHORT)
        except ForkedProcessError:
            status = 7
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(process_id, 0)[1]) == 7
    assert whisper.transcribe(SHORT, profile="fast").text == TEXT
