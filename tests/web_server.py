"""A web server on loopback that answers byte by byte as a test says, so that it can also misbehave."""

from __future__ import annotations

import socket
import socketserver
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from tests.loopback import serving

DRIP_SECONDS = 0.01


@dataclass
class Request:
    """What a client asked, and the connection to answer on."""

    target: str
    headers: dict[str, str]
    socket: socket.socket = field(repr=False)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def await_hang_up(self) -> None:
        """Return when the client has shut the connection."""
        with suppress(ConnectionError):
            while self.socket.recv(4096):
                pass

    def drip(self, data: bytes) -> None:
        """Send `data` again and again, slowly, until the client hangs up."""
        self.socket.settimeout(DRIP_SECONDS)
        while True:
            self.send(data)
            with suppress(TimeoutError):
                if not self.socket.recv(4096):
                    return


Answer = Callable[[Request], None]


class WebServer(socketserver.ThreadingTCPServer):
    """Hands every request to `answer` and records it; afterwards the connection is closed."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, answer: Answer, host: str, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.answer = answer
        self.tls = tls
        self.requests: list[Request] = []
        super().__init__((host, port), _Handler)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        host = str(self.server_address[0])
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients of these tests: they hang up when they like."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(*_)  # type: ignore[arg-type]


class _Handler(socketserver.BaseRequestHandler):
    server: WebServer
    request: socket.socket

    def handle(self) -> None:
        if self.server.tls:
            self.request = self.server.tls.wrap_socket(self.request, server_side=True)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            data = self.request.recv(65_536)
            if not data:
                return
            head += data
        first, *lines = head.decode("ascii").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        request = Request(first.split(" ")[1], headers, self.request)
        self.server.requests.append(request)
        self.server.answer(request)

    def finish(self) -> None:
        self.request.close()  # what TLS wrapped, the server does not know


@contextmanager
def serve(
    answer: Answer, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
) -> Iterator[WebServer]:
    """Serve until the end of the block. Port 0: a free one."""
    with serving(WebServer(answer, host, port, tls)) as server:
        yield server


def head(status: int = 200, **headers: object) -> bytes:
    """The head of an answer; `_` in a header's name stands for `-`."""
    lines = [f"HTTP/1.1 {status} Said", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def reply(body: bytes, status: int = 200, **headers: object) -> Answer:
    """Answer with a body of the length that is announced."""
    return lambda request: request.send(head(status, **{"Content_Length": len(body)} | headers) + body)


def redirect(location: str, status: int = 302) -> Answer:
    return reply(b"", status, Location=location)
