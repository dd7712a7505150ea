"""What ends a call: its deadline or its cancel, once, and only while there is something to end."""

from __future__ import annotations

import socket
import threading
from functools import partial

import pytest

from whisperlib.options import CancelToken
from whisperlib.watch import Watch, shut

WAIT_SECONDS = 60.0  # on a busy machine


class Late(Exception):
    pass


class Cancelled(Exception):
    pass


def watched(seconds: float = WAIT_SECONDS, cancel: CancelToken | None = None) -> Watch:
    return Watch(seconds, cancel, late=Late, cancelled=Cancelled)


def test_the_deadline_ends_what_is_waited_for() -> None:
    def wait(watch: Watch) -> None:
        ended = threading.Event()
        with watch.ending(ended.set):
            assert ended.wait(WAIT_SECONDS)
            watch.check()

    with watched(0.05) as watch, pytest.raises(Late):
        wait(watch)


def test_a_cancel_ends_it_before_the_deadline() -> None:
    token, ended = CancelToken(), threading.Event()
    with watched(cancel=token) as watch, watch.ending(ended.set):
        assert 0 < watch.remaining_seconds() <= WAIT_SECONDS
        token.cancel()
        assert ended.is_set()
        with pytest.raises(Cancelled):
            watch.remaining_seconds()


@pytest.mark.parametrize("seconds", [0, -1])
def test_what_has_no_time_is_not_begun(seconds: float) -> None:
    with watched(seconds) as watch, pytest.raises(Late), watch.ending(lambda: None):
        pytest.fail("it was begun")


def test_what_is_cancelled_already_is_not_begun() -> None:
    token = CancelToken()
    token.cancel()
    with watched(cancel=token) as watch, pytest.raises(Cancelled), watch.ending(lambda: None):
        pytest.fail("it was begun")


def test_what_has_ended_by_itself_is_left_alone() -> None:
    token, ended = CancelToken(), threading.Event()
    with watched(cancel=token) as watch:
        with watch.ending(ended.set):
            pass
        token.cancel()
        with pytest.raises(Cancelled):
            watch.check()
    assert not ended.is_set()


def test_a_token_outlives_its_watch() -> None:
    token, ended = CancelToken(), threading.Event()
    with watched(cancel=token) as watch:
        ending = watch.ending(ended.set)
        ending.__enter__()
    token.cancel()
    assert not ended.is_set()


def test_a_shut_connection_wakes_who_reads_from_it() -> None:
    token = CancelToken()
    here, there = socket.socketpair()
    with here, there, watched(cancel=token) as watch, watch.ending(partial(shut, here)):
        threading.Thread(target=token.cancel).start()
        assert here.recv(1) == b""


def test_a_closed_connection_cannot_be_shut_and_nobody_minds() -> None:
    here, there = socket.socketpair()
    here.close()
    shut(here)
    there.close()
