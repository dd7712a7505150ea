"""A server on loopback that speaks OpenAI's chat API as a test says, so that it can also stall, fail and lie."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.loopback import serving

WAIT_SECONDS = 60.0  # on a busy machine


@dataclass
class Call:
    """What a client asks, and the ways to answer it."""

    handler: BaseHTTPRequestHandler
    path: str
    headers: dict[str, str]
    body: dict[str, Any] = field(default_factory=dict)

    @property
    def transcript(self) -> str:
        """The text between the marks."""
        content = self.body["messages"][-1]["content"]
        found = re.search(r"<(transcript-\w+)>\n(.*)\n</\1>", content, re.DOTALL)
        assert found, content
        return found[2]

    @property
    def mark(self) -> str:
        return str(re.findall(r"<(transcript-\w+)>", self.body["messages"][-1]["content"])[0])

    def send(self, data: bytes, status: int = 200, kind: str = "application/json", **headers: str) -> None:
        """Answer in one piece."""
        self.handler.send_response(status)
        self.handler.send_header("Content-Type", kind)
        self.handler.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.handler.send_header(name, value)
        self.handler.end_headers()
        self.handler.wfile.write(data)

    def reply(self, text: str, finish_reason: str = "stop") -> None:
        """Answer with a text: streamed by words where that is asked for."""
        if not self.body.get("stream"):
            message = {"role": "assistant", "content": text}
            answer = {"object": "chat.completion", "choices": [{"message": message, "finish_reason": finish_reason}]}
            self.send(json.dumps(answer).encode())
            return
        self.begin_stream()
        self.delta("", role="assistant")
        for word in re.findall(r"\s*\S+\s*$|\s*\S+", text) or [""]:
            self.delta(word)
        self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": finish_reason}]})
        self.event({"choices": [], "usage": {"total_tokens": 7}})
        self.end_stream()

    def begin_stream(self, kind: str = "text/event-stream; charset=utf-8") -> None:
        self.handler.send_response(200)
        self.handler.send_header("Content-Type", kind)
        self.handler.send_header("Transfer-Encoding", "chunked")
        self.handler.end_headers()

    def delta(self, text: str, **others: str) -> None:
        self.event({"choices": [{"index": 0, "delta": {**others, "content": text}, "finish_reason": None}]})

    def event(self, data: Any) -> None:
        self.line(f"data: {json.dumps(data)}")

    def line(self, text: str) -> None:
        self.chunk(f"{text}\n\n".encode())

    def chunk(self, data: bytes) -> None:
        self.handler.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.handler.wfile.flush()

    def end_stream(self) -> None:
        self.line("data: [DONE]")
        self.handler.wfile.write(b"0\r\n\r\n")

    def await_hang_up(self) -> None:
        """Return when the client has closed the connection; fail where it does not."""
        self.handler.connection.settimeout(WAIT_SECONDS)
        try:
            while self.handler.connection.recv(4096):
                pass
        except ConnectionError:
            pass

    def hang_up(self) -> None:
        self.handler.close_connection = True
        self.handler.connection.shutdown(socket.SHUT_RDWR)


Answer = Callable[[Call], None]


@dataclass
class ChatServer:
    """What a test holds of it. `hung_up` is set when a client that `stall` kept waiting has gone."""

    port: int
    calls: list[Call] = field(default_factory=list)
    called: threading.Event = field(default_factory=threading.Event)
    hung_up: threading.Event = field(default_factory=threading.Event)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


def stall(call: Call) -> None:
    """Never answer."""
    call.await_hang_up()


@contextmanager
def chat_server(answer: Answer) -> Iterator[ChatServer]:
    """Serve on a free port until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"] or 0)
            self.answer(json.loads(self.rfile.read(length)))

        def do_GET(self) -> None:
            self.answer({})

        def answer(self, body: dict[str, Any]) -> None:
            call = Call(self, self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            told.calls.append(call)
            told.called.set()
            try:
                answer(call)
            except (BrokenPipeError, ConnectionError):
                told.hung_up.set()
                self.close_connection = True
            if answer is stall:
                told.hung_up.set()
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    told = ChatServer(server.server_port)
    with serving(server):
        yield told
