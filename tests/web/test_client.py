"""A client that goes away: its request is cancelled, nobody else's is."""

from __future__ import annotations

import io
import os
import socket
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import soundfile

from tests.web.running_server import RunningServer, running_server, wait_until
from whisperlib.options import CancelToken
from whisperlib.pcm import SAMPLE_RATE, Samples
from whisperlib.web.client import cancel_when_gone

SMALL_APP = (sys.executable, "-m", "tests.web.small_app")
Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """The server's end of a connection, and the client's."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server(command=SMALL_APP) as server:
        yield server


@pytest.fixture(scope="module")
def long_audio(sample: Callable[[str], Samples]) -> bytes:
    """Ten minutes of speech as a FLAC file."""
    file = io.BytesIO()
    soundfile.write(file, np.tile(sample("long_slt75"), 8), SAMPLE_RATE, format="FLAC")
    return file.getvalue()


def wait_for_the_watcher() -> None:
    """Wait until another client that goes away is noticed; what happened before has been noticed by then."""
    ours, theirs = socket.socketpair()
    token = CancelToken()
    with ours, cancel_when_gone({"gunicorn.socket": ours}, token):
        theirs.close()
        wait_until(lambda: token.cancelled, "the other client is noticed")


def test_a_client_that_closes_is_gone(pair: Pair) -> None:
    token = CancelToken()
    with cancel_when_gone({"gunicorn.socket": pair[0]}, token):
        assert not token.cancelled
        pair[1].close()
        wait_until(lambda: token.cancelled, "the token is cancelled")


def test_a_client_that_sends_no_more_counts_as_gone(pair: Pair) -> None:
    token = CancelToken()
    with cancel_when_gone({"gunicorn.socket": pair[0]}, token):
        pair[1].shutdown(socket.SHUT_WR)
        wait_until(lambda: token.cancelled, "the token is cancelled")


def test_a_client_that_went_before_it_was_watched_is_gone(pair: Pair) -> None:
    pair[1].close()
    token = CancelToken()
    with cancel_when_gone({"gunicorn.socket": pair[0]}, token):
        wait_until(lambda: token.cancelled, "the token is cancelled")


def test_a_client_that_sends_its_next_request_is_not_gone(pair: Pair) -> None:
    token = CancelToken()
    with cancel_when_gone({"gunicorn.socket": pair[0]}, token):
        pair[1].sendall(b"GET / HTTP/1.1\r\n")
        wait_for_the_watcher()
        assert not token.cancelled
        assert pair[0].recv(1) == b"G"  # nothing was read


def test_a_request_that_has_ended_is_not_cancelled(pair: Pair) -> None:
    token = CancelToken()
    with cancel_when_gone({"gunicorn.socket": pair[0]}, token):
        pass
    pair[1].close()
    wait_for_the_watcher()
    assert not token.cancelled


def test_a_kept_connection_is_watched_for_each_of_its_requests(pair: Pair) -> None:
    first, second = CancelToken(), CancelToken()
    with cancel_when_gone({"gunicorn.socket": pair[0]}, first):
        pass
    with cancel_when_gone({"gunicorn.socket": pair[0]}, second):
        pair[1].close()
        wait_until(lambda: second.cancelled, "the token is cancelled")
    assert not first.cancelled


def test_a_request_that_outlives_its_connection_leaves_the_next_with_its_number_alone(pair: Pair) -> None:
    first, second = CancelToken(), CancelToken()
    outlives = cancel_when_gone({"gunicorn.socket": pair[0]}, first)
    outlives.__enter__()
    number = pair[0].fileno()
    ours, theirs = socket.socketpair()
    os.dup2(ours.fileno(), number)  # closes what had the number
    with ours, socket.socket(fileno=os.dup(number)) as probe, cancel_when_gone({"gunicorn.socket": pair[0]}, second):
        outlives.__exit__(None, None, None)
        theirs.close()
        wait_until(lambda: second.cancelled, "the token is cancelled")
        assert probe.recv(1) == b""


def test_a_listener_that_fails_does_not_end_the_watch(pair: Pair) -> None:
    token = CancelToken()
    token.add_listener(lambda: 1 / 0)
    with cancel_when_gone({"gunicorn.socket": pair[0]}, token):
        pair[1].close()
        wait_for_the_watcher()
    wait_for_the_watcher()


@pytest.mark.parametrize("environ", [{}, {"gunicorn.socket": None}])
def test_without_a_socket_nothing_is_watched(environ: dict[str, object]) -> None:
    token = CancelToken()
    with cancel_when_gone(environ, token):
        pass
    assert not token.cancelled


def test_a_client_of_a_server_that_goes_away_frees_its_place(server: RunningServer) -> None:
    stays = server.connect()
    stays.sendall(b"GET /wait?name=stays HTTP/1.1\r\nHost: a\r\n\r\nGET /ready HTTP/1.1\r\nHost: a\r\n\r\n")
    goes = server.connect()
    goes.sendall(b"GET /wait?name=goes HTTP/1.1\r\nHost: a\r\n\r\n")
    wait_until(lambda: server.get("/state").json()["in_flight"] == 2, "both are inside")
    goes.close()
    wait_until(lambda: server.get("/state").json()["in_flight"] == 1, "its place is free")
    assert server.get("/state").json()["cancelled"] == ["goes"]
    stays.close()
    wait_until(lambda: server.get("/state").json()["in_flight"] == 0, "all is free")
    assert "Traceback" not in server.log


def test_a_client_that_goes_away_while_its_audio_is_transcribed_frees_the_engine(
    server: RunningServer, long_audio: bytes
) -> None:
    with server.connect() as goes:
        goes.sendall(b"POST /transcribe?name=speaker HTTP/1.1\r\nHost: a\r\n")
        goes.sendall(b"Content-Length: %d\r\n\r\n" % len(long_audio) + long_audio)
        wait_until(lambda: server.get("/state").json()["running"] == 1, "it is transcribed")
    wait_until(lambda: server.get("/state").json()["running"] == 0, "the engine is free")
    wait_until(lambda: server.get("/state").json()["in_flight"] == 0, "its place is free")
    assert "speaker" in server.get("/state").json()["cancelled"]
