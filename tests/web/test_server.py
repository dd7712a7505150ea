"""The life of the server process: start, stop, failure, crash; and the time that clients may take."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.web.running_server import SERVE, RunningServer, running_server, wait_until
from whisperlib import assets
from whisperlib.cli.common import Status

SMALL_APP = (sys.executable, "-m", "tests.web.small_app")


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """A server whose clients have little time."""
    with running_server(
        command=SMALL_APP, header_timeout_seconds=1, body_timeout_seconds=1, write_timeout_seconds=1, http_threads=8
    ) as server:
        yield server


@pytest.fixture
def own_server() -> Callable[..., Any]:
    """Start a server that the test stops or breaks."""
    return lambda **settings: running_server(command=SMALL_APP, **settings)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as pool:
        yield pool


def in_flight(server: RunningServer) -> int:
    count: int = server.get("/state").json()["in_flight"]
    return count


def waiting_request(server: RunningServer, pool: ThreadPoolExecutor) -> Future[requests.Response]:
    """Send a request that waits to be released, and return when it is inside."""
    before = in_flight(server)
    future = pool.submit(server.get, "/wait")
    wait_until(lambda: in_flight(server) > before, "the request is inside")
    return future


def transcribed(server: RunningServer) -> str:
    text: str = server.post("/transcribe", data=(assets.SAMPLES / "rms_010.flac").read_bytes()).json()["text"]
    return text


def answer_of(connection: socket.socket) -> str:
    """Read until the server closes."""
    return b"".join(iter(lambda: connection.recv(65_536), b"")).decode("latin-1")


def whisperlib_lines(log: str) -> list[str]:
    return [line for line in log.splitlines() if line.strip()]


# The real application


def test_whisperlib_serve_transcribes_and_exits_with_0() -> None:
    with running_server(command=SERVE) as server:
        assert server.get("/health").json()["status"] == "ready"
        with (assets.SAMPLES / "rms_010.flac").open("rb") as file:
            answer = server.post("/transcribe", files={"file": file})
        assert "train to Paris" in answer.json()["text"]
        assert server.stop() == 0
        assert f"listens at {server.url} and loads micro" in server.log


def test_the_real_application_says_why_it_has_no_model(tmp_path: Path) -> None:
    with running_server(
        command=SERVE, wait=False, model_size="small", model_root=tmp_path, failure_delay_seconds=600
    ) as server:
        wait_until(lambda: "could not be loaded" in server.log, "it has failed")
        assert str(tmp_path) in server.get("/ready").json()["error"]["message"]
        assert server.get("/health").json()["status"] == "failed"
        assert server.stop() == Status.INPUT


# Stop


def test_a_transcription_that_runs_is_finished_before_the_server_stops(
    own_server: Callable[..., Any], pool: ThreadPoolExecutor
) -> None:
    with own_server(shutdown_seconds=600) as server:
        audio = (assets.SAMPLES / "long_slt75.flac").read_bytes()
        slow = pool.submit(server.post, "/transcribe", data=audio)
        wait_until(lambda: server.get("/state").json()["running"] == 1, "it is transcribed")
        assert server.stop() == 0
        assert len(slow.result().json()["text"]) > 500
        assert "cancelled" not in server.log


def test_sigterm_lets_requests_end_refuses_new_ones_and_exits_with_0(
    own_server: Callable[..., Any], pool: ThreadPoolExecutor
) -> None:
    with own_server(shutdown_seconds=60) as server:
        slow = waiting_request(server, pool)
        server.send(signal.SIGTERM)
        wait_until(lambda: server.get("/ready").json()["phase"] == "stopping", "the stop has begun")
        refused = server.get("/wait")  # on a new connection
        assert refused.status_code == 503
        assert refused.headers["Retry-After"] == "5"
        assert refused.headers["x-should-retry"] == "true"
        assert refused.headers["Connection"] == "close"
        assert refused.json()["error"]["type"] == "server_error"
        assert "stopping" in refused.json()["error"]["message"]
        assert server.post("/release").ok
        assert slow.result().text == "released"
        assert server.wait() == 0
        assert "Traceback" not in server.log


def test_what_does_not_end_in_time_is_cancelled_and_told_so(
    own_server: Callable[..., Any], pool: ThreadPoolExecutor
) -> None:
    with own_server(shutdown_seconds=0.5) as server:
        slow = waiting_request(server, pool)
        assert server.stop() == 0
        assert slow.result().status_code == 503
        assert slow.result().json()["error"]["code"] == "cancelled"
        assert "requests were cancelled" in server.log


@pytest.mark.parametrize(
    ("first", "second"),
    [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGQUIT)],
)
def test_a_second_signal_waits_no_longer(
    own_server: Callable[..., Any], pool: ThreadPoolExecutor, first: signal.Signals, second: signal.Signals
) -> None:
    with own_server(shutdown_seconds=86_400) as server:
        slow = waiting_request(server, pool)
        server.send(first)
        wait_until(lambda: server.get("/ready").json()["phase"] == "stopping", "the stop has begun")
        server.send(second)
        assert server.wait() == 0
        assert slow.result().status_code == 503


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_and_a_closed_terminal_let_requests_end_too(
    own_server: Callable[..., Any], pool: ThreadPoolExecutor, number: signal.Signals
) -> None:
    with own_server(shutdown_seconds=60) as server:
        slow = waiting_request(server, pool)
        os.killpg(server.pid, number)  # a terminal sends it to all processes
        wait_until(lambda: server.get("/ready").json()["phase"] == "stopping", "the stop has begun")
        assert server.post("/release").ok
        assert slow.result().text == "released"
        assert server.wait() == 0


def test_sigquit_does_not_wait(own_server: Callable[..., Any], pool: ThreadPoolExecutor) -> None:
    with own_server(shutdown_seconds=86_400) as server:
        slow = waiting_request(server, pool)
        server.send(signal.SIGQUIT)
        assert server.wait() == 0
        assert slow.result().status_code == 503


def test_a_stop_while_the_model_loads_exits_with_0(own_server: Callable[..., Any]) -> None:
    with own_server(wait=False) as server:
        wait_until(lambda: "listens at" in server.log, "it listens")
        assert server.stop() == 0


def test_signals_for_what_it_cannot_do_change_nothing(own_server: Callable[..., Any]) -> None:
    with own_server() as server:
        (worker,) = server.worker_pids
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU):
            server.send(number)
        os.kill(worker, signal.SIGINT)
        assert server.get("/ready").ok
        assert server.stop() == 0
        assert not server.log.count("creating an adapter") > 1


def test_idle_and_silent_connections_do_not_hold_up_the_stop(own_server: Callable[..., Any]) -> None:
    with own_server(header_timeout_seconds=600) as server, requests.Session() as kept, server.connect() as silent:
        assert kept.get(f"{server.url}/ready").ok
        with server.connect() as begun:
            begun.sendall(b"GET / HTTP/1.1\r\nHo")
            assert server.get("/ready").ok  # by then it has the beginning
            assert server.stop() == 0
            assert answer_of(begun).startswith("HTTP/1.1 503")
        assert answer_of(silent) == ""


def test_gunicorns_own_environment_changes_nothing(own_server: Callable[..., Any]) -> None:
    elsewhere = {"GUNICORN_CMD_ARGS": "--workers 3 --bind 127.0.0.1:1", "WEB_CONCURRENCY": "3", "PORT": "1"}
    with own_server(environment=elsewhere) as server:
        assert len(server.worker_pids) == 1


def test_an_upload_that_does_not_come_does_not_hold_up_the_stop(own_server: Callable[..., Any]) -> None:
    with own_server(body_timeout_seconds=86_400) as server, server.connect() as connection:
        connection.sendall(b"POST /length HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n")
        assert server.get("/ready").ok
        assert server.stop() == 0
        assert "SIGKILL" not in server.log  # it left by itself


# Failure


def test_a_model_that_cannot_be_loaded_is_told_and_ends_the_process(tmp_path: Path) -> None:
    with running_server(
        command=SMALL_APP, wait=False, model_size="small", model_root=tmp_path, failure_delay_seconds=3
    ) as server:
        told: list[dict[str, str]] = []

        def is_told() -> bool:
            try:
                told.append(server.get("/ready").json())
            except requests.ConnectionError:
                return False
            return told[-1]["phase"] == "failed"

        wait_until(is_told, "the reason is told")
        assert str(tmp_path) in told[-1]["reason"]
        assert server.wait() == Status.INPUT
        assert server.log.count("could not be loaded") == 1
        assert "Traceback" not in server.log
        assert "Shutting down" not in server.log
        assert "exited with code" not in server.log


def test_a_stop_while_the_failure_is_told_still_exits_with_its_status(tmp_path: Path) -> None:
    with running_server(
        command=SMALL_APP, wait=False, model_size="small", model_root=tmp_path, failure_delay_seconds=600
    ) as server:
        wait_until(lambda: "could not be loaded" in server.log, "it has failed")
        assert server.stop() == Status.INPUT
        assert "Traceback" not in server.log


def test_an_address_in_use_is_told_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with running_server(command=SERVE, wait=False, port=port) as server:
            assert server.wait() == Status.INPUT
            assert whisperlib_lines(server.log) == [
                f"whisperlib: cannot listen on 127.0.0.1, port {port}: Address already in use; "
                "choose another with --host and --port (WHISPER_HOST, WHISPER_PORT)"
            ]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"http_threads": "many"}, "WHISPER_HTTP_THREADS = 'many'"),
        ({"host": "192.0.2.1", "api_keys": "none"}, "192.0.2.1"),
    ],
)
def test_a_bad_setting_is_told_in_one_line(settings: dict[str, Any], named: str) -> None:
    with running_server(command=SERVE, wait=False, **settings) as server:
        assert server.wait() == Status.INPUT
        (line,) = whisperlib_lines(server.log)
        assert line.startswith("whisperlib: ")
        assert named in line


# Crash


def test_a_crash_of_native_code_brings_a_new_worker_that_transcribes(own_server: Callable[..., Any]) -> None:
    with own_server() as server:
        before = transcribed(server)
        assert "train to Paris" in before
        (crashed,) = server.worker_pids
        os.kill(crashed, signal.SIGSEGV)
        wait_until(lambda: server.worker_pids not in ([crashed], []), "there is a new worker")
        server.wait_until_ready()
        assert transcribed(server) == before
        assert server.log.count("creating an adapter") == 2


def test_repeated_crashes_are_delayed_and_the_wait_is_explained(own_server: Callable[..., Any]) -> None:
    with own_server() as server:
        for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL, signal.SIGSEGV, signal.SIGKILL):
            (worker,) = server.worker_pids
            os.kill(worker, number)
            wait_until(lambda: server.worker_pids not in ([worker], []), "there is a new worker")  # noqa: B023
        waiting = server.get("/ready")
        assert waiting.status_code == 503
        assert waiting.json()["phase"] == "loading"
        assert "crashed, 5 times in a row: this one waits for 8 s" in waiting.json()["reason"]
        assert server.get("/wait").status_code == 503
        assert server.stop() == 0


def test_a_worker_leaves_when_its_master_is_killed(own_server: Callable[..., Any]) -> None:
    with own_server() as server:
        (worker,) = server.worker_pids
        server.send(signal.SIGKILL)
        assert server.wait() == -signal.SIGKILL
        wait_until(lambda: not Path(f"/proc/{worker}/cmdline").exists() or not is_alive(worker), "the worker has left")


def is_alive(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_request_longer_than_the_heartbeat_survives(own_server: Callable[..., Any]) -> None:
    with own_server(environment={"TEST_HEARTBEAT_SECONDS": "3"}) as server:
        (worker,) = server.worker_pids
        assert server.get("/native/9").text == "awake"
        assert server.worker_pids == [worker]


# Clients that take their time


def test_a_slow_head_is_answered_408_and_closed(server: RunningServer) -> None:
    with server.connect() as slow:
        drip_until_closed(slow, b"GET /ready HTTP/1.1\r\nX-Slow: ", b"a")
        answer = answer_of(slow)
    assert answer.startswith("HTTP/1.1 408 Request Timeout\r\n")
    assert "x-should-retry: false" in answer
    assert '"code": "header_timeout"' in answer


def test_a_client_that_says_nothing_is_closed_without_an_answer(server: RunningServer) -> None:
    with server.connect() as silent:
        assert answer_of(silent) == ""


def test_slow_heads_hold_no_threads(own_server: Callable[..., Any]) -> None:
    with own_server(http_threads=8, header_timeout_seconds=600) as server:
        slow = [server.connect() for _ in range(64)]
        for connection in slow:
            connection.sendall(b"GET /ready HTTP/1.1\r\nX-Slow: ")
        assert server.get("/ready").ok
        slow[0].sendall(b"a\r\nConnection: close\r\n\r\n")
        assert answer_of(slow[0]).startswith("HTTP/1.1 200 OK")
        for connection in slow:
            connection.close()


def test_a_slow_body_is_answered_408_and_closed_and_others_are_served(server: RunningServer) -> None:
    with server.connect() as slow:
        slow.sendall(b"POST /length HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n")
        assert server.post("/length", data=bytes(1000)).json() == {"length": 1000}
        drip_until_closed(slow, b"", b"a")
        answer = answer_of(slow)
    assert answer.startswith("HTTP/1.1 408 REQUEST TIMEOUT\r\n")
    assert "Connection: close" in answer
    assert "x-should-retry: false" in answer
    assert '"body_timeout"' in answer


def test_a_slow_chunked_body_is_answered_408(server: RunningServer) -> None:
    with server.connect() as slow:
        slow.sendall(b"POST /length HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        drip_until_closed(slow, b"", b"1\r\na\r\n")
        assert answer_of(slow).startswith("HTTP/1.1 408")


def test_a_reader_that_takes_nothing_is_dropped_and_its_place_is_free(server: RunningServer) -> None:
    with server.connect() as slow:
        slow.sendall(b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n")
        assert slow.recv(1)
        wait_until(lambda: "took nothing of its answer" in server.log, "it is dropped")
        wait_until(lambda: in_flight(server) == 0, "its place is free")
    assert "Traceback" not in server.log


def test_a_kept_connection_works_on_after_slow_requests_that_were_in_time(server: RunningServer) -> None:
    head = b"POST /length HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n"
    with server.connect() as connection:
        for _ in range(4):  # together longer than each may take
            connection.sendall(head)
            assert not readable(connection, 0.3)
            connection.sendall(b"\r\nab")
            assert not readable(connection, 0.3)
            connection.sendall(b"cd")
            assert b'{"length":4}' in received(connection, b"}\n")


def test_requests_sent_in_one_go_are_answered_in_turn(server: RunningServer) -> None:
    with server.connect() as connection:
        one = b"POST /length HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
        last = b"GET /ready HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        connection.sendall(one + one + last)
        answer = answer_of(connection)
    assert answer.count("HTTP/1.1 200 OK") == 3
    assert answer.count('{"length":3}') == 2


def readable(connection: socket.socket, seconds: float) -> bool:
    """Whether something comes within `seconds`."""
    connection.settimeout(seconds)
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except TimeoutError:
        return False
    finally:
        connection.settimeout(60)


def received(connection: socket.socket, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        data += connection.recv(65_536)
    return data


def drip_until_closed(connection: socket.socket, first: bytes, drop: bytes) -> None:
    """Send `first`, then `drop` again and again, until an answer comes."""
    connection.sendall(first)

    def answered() -> bool:
        connection.sendall(drop)
        return readable(connection, 0.05)

    wait_until(answered, "the server has had enough")


# Requests that never reach the application


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (b"GET / HTTP/1.1\r\nbad header\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\n\n", 400),
        (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nX-Long: " + b"a" * 9000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"X-Many: a\r\n" * 101 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"X-Endless: a\r\n" * 10_000, 431),
        (b"POST / HTTP/1.1\r\nExpect: a miracle\r\nContent-Length: 0\r\n\r\n", 417),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: rot13\r\n\r\n", 501),
    ],
)
def test_a_head_that_cannot_be_used_is_answered_as_the_application_would(
    server: RunningServer, request_head: bytes, status: int
) -> None:
    with server.connect() as connection:
        connection.sendall(request_head)
        head, _, body = answer_of(connection).partition("\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ")
    assert "Content-Type: application/json" in head
    error = json.loads(body)["error"]
    assert error["message"]
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")


@pytest.mark.parametrize(
    "rest",
    [
        b"Content-Length: 10\r\n\r\nabc",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
    ],
)
def test_a_body_that_ends_early_or_is_malformed_is_answered_400(server: RunningServer, rest: bytes) -> None:
    with server.connect() as connection:
        connection.sendall(b"POST /length HTTP/1.1\r\nHost: a\r\n" + rest)
        connection.shutdown(socket.SHUT_WR)
        answer = answer_of(connection)
    assert answer.startswith("HTTP/1.1 400 BAD REQUEST")
    assert "Connection: close" in answer


def test_a_body_that_nobody_reads_does_not_hide_the_answer(server: RunningServer) -> None:
    with requests.Session() as session:
        for size in (50_000, 20_000_000, 50_000):
            answer = session.post(f"{server.url}/unread", data=bytes(size))
            assert answer.text == "not read"
            assert answer.headers["Connection"] == "close"  # or a client would send its next request into it
            assert session.post(f"{server.url}/length", data=bytes(size)).headers["Connection"] == "keep-alive"


def test_a_body_that_nobody_reads_and_that_does_not_come_ends_the_connection(own_server: Callable[..., Any]) -> None:
    with own_server(body_timeout_seconds=86_400) as server, server.connect() as connection:
        connection.sendall(b"POST /unread HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n")
        answer = answer_of(connection)
    assert answer.endswith("not read")
    assert answer.count("HTTP/1.1") == 1


def test_an_answer_with_a_forbidden_header_is_the_servers_fault(server: RunningServer) -> None:
    answer = server.get("/header")
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
