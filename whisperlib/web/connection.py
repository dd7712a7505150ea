# mypy: disallow-subclassing-any=False
"""A client's connection in Gunicorn's terms, with a bound on the time that each part of a request may take."""

from __future__ import annotations

import json
import socket
import struct
import time
from contextlib import suppress
from enum import Enum, auto
from http.client import responses
from typing import Any

from gunicorn import util  # type: ignore[import-untyped]
from gunicorn.http.body import Body, LengthReader  # type: ignore[import-untyped]
from gunicorn.http.errors import NoMoreData, ParseException  # type: ignore[import-untyped]
from gunicorn.http.unreader import SocketUnreader  # type: ignore[import-untyped]
from gunicorn.workers.gthread import TConn  # type: ignore[import-untyped]

from whisperlib.settings import Settings
from whisperlib.web.errors import CLIENT_CLOSED_REQUEST, ApiError, Problem

MAX_HEAD_BYTES = 65_536
LINGER_SECONDS = 2.0
SEND_BUFFER_BYTES = 131_072


class Head(Enum):
    """How far the head of a request has come."""

    WAITING = auto()
    COMPLETE = auto()
    TOO_LARGE = auto()
    GONE = auto()


class Connection(TConn):
    """Gathers a request's head without blocking, so that a slow one holds no thread.

    `head` is what is there of a head that is not complete, `head_deadline` when it must be, on the monotonic clock.
    """

    def __init__(self, settings: Settings, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._settings = settings
        self.head = bytearray()
        self.head_deadline: float | None = None
        self.init()
        self.unreader = self.parser.unreader = _Unreader(self.sock)
        # A timeout of Python's would bound all of a `sendall`; the kernel's starts anew whenever something is taken.
        seconds = settings.write_timeout_seconds
        timeval = struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))
        # It notices only when a third of the buffer is free again: a small one, so that a slow reader is seen to read.
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
        # A client whose machine or network has gone says nothing: after about a minute it counts as gone, too.
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)

    def gather_head(self) -> Head:
        """Take what has come, up to the end of the head; a complete one is handed to Gunicorn's parser."""
        self.sock.setblocking(False)
        if self.head_deadline is None:
            self.head_deadline = time.monotonic() + self._settings.header_timeout_seconds
            self.head += self.unreader.take_buffered()  # came with the request before
        while not self._head_ends():
            if len(self.head) > MAX_HEAD_BYTES:
                return Head.TOO_LARGE
            try:
                data = self.sock.recv(MAX_HEAD_BYTES)
            except BlockingIOError:
                return Head.WAITING
            except OSError:
                return Head.GONE
            if not data:
                return Head.GONE
            self.head += data
        self.unreader.unread(bytes(self.head))
        self.head = bytearray()
        self.head_deadline = None
        return Head.COMPLETE

    def expect_body(self, request: Any) -> None:
        """Have all of the request's body there in time, from now on."""
        self.unreader.deadline = time.monotonic() + self._settings.body_timeout_seconds
        body = request.body = _RequestBody(request, self._settings.body_timeout_seconds)
        should_close = request.should_close
        # Asked when the answer's head is sent: who did not have a body read is told that the connection ends.
        request.should_close = lambda: should_close() or body.is_unread

    def end(self) -> None:
        """Close so that a client that still sends its body gets the answer first; takes LINGER_SECONDS at most."""
        util.close_graceful(self.sock, LINGER_SECONDS, self._settings.max_body_bytes)

    def drop(self) -> None:
        """Close, and forget what was not sent."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self, graceful: bool = False) -> None:
        """Close without waiting: this runs in the thread that accepts, and `end` has run before where it matters."""
        self.sock.close()

    def _head_ends(self) -> bool:
        # With bare line feeds, which Gunicorn's parser refuses, it would never end otherwise.
        return b"\r\n\r\n" in self.head or b"\n\n" in self.head


class _Unreader(SocketUnreader):
    """Reads from the socket until `deadline` on the monotonic clock; None: as the socket's timeout says."""

    deadline: float | None = None

    def chunk(self, size_hint: int | None = None) -> bytes:
        """Return what comes next. Raises TimeoutError."""
        if self.deadline is None:
            return bytes(super().chunk(size_hint))
        before = self.sock.gettimeout()
        remaining = self.deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        self.sock.settimeout(remaining)
        try:
            return bytes(super().chunk(size_hint))
        finally:
            self.sock.settimeout(before)


class _RequestBody(Body):
    """A body that says what is wrong with it as ApiError, and then has the connection closed."""

    def __init__(self, request: Any, timeout_seconds: float) -> None:
        super().__init__(request.body.reader)
        self._request = request
        self._timeout_seconds = timeout_seconds

    @property
    def is_unread(self) -> bool:
        """Whether some of it may still be on its way."""
        if isinstance(self.reader, LengthReader):
            return bool(self.reader.length)
        return getattr(self.reader, "parser", None) is not None  # of chunks

    def _read_reader(self, size: int) -> bytes:
        due = min(size, self.reader.length) if isinstance(self.reader, LengthReader) else 0
        try:
            data: bytes = super()._read_reader(size)
        except TimeoutError:
            seconds = f"{self._timeout_seconds:g} s"
            raise self._refused(408, f"the request's body was not there within {seconds}", "body_timeout") from None
        except NoMoreData:
            raise self._refused(400, "the request's body ended early", "incomplete_body") from None
        except ParseException as error:
            raise self._refused(400, f"the request's body is malformed: {error}", "malformed_body") from None
        except OSError:
            raise self._refused(CLIENT_CLOSED_REQUEST, "the client went away", "client_gone") from None
        if len(data) < due:
            raise self._refused(400, "the request's body ended early", "incomplete_body")
        return data

    def _refused(self, status: int, message: str, code: str) -> ApiError:
        self.failed = True  # where the next request starts is unknown
        self._request.force_close()
        return ApiError(status, message, code=code)


def send_problem(connection: socket.socket, problem: Problem) -> None:
    """Send an answer that the application cannot give, as far as the client takes it at once; the last one."""
    body = json.dumps(problem.body()).encode()
    lines = (
        f"HTTP/1.1 {problem.status} {responses.get(problem.status, 'Error')}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Connection: close",
        f"x-should-retry: {'true' if problem.retry else 'false'}",
    )
    with suppress(OSError):  # it has gone, or takes nothing
        connection.setblocking(False)
        connection.send("\r\n".join((*lines, "", "")).encode("latin-1") + body)
