"""The client at the other end of a request's socket: whether it is still there."""

from __future__ import annotations

import logging
import select
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from whisperlib.options import CancelToken

logger = logging.getLogger(__name__)


@contextmanager
def cancel_when_gone(environ: Mapping[str, Any], token: CancelToken) -> Iterator[None]:
    """Cancel `token` as soon as the client of this request has gone; once per request, around all of its work.

    A client that only shuts down its sending side counts as gone, too: the two cannot be told apart. A next request
    that is already on the line does not. Where the server does not lend its socket (Flask's test client) or the
    system has no epoll, nothing is watched.
    """
    connection = environ.get("gunicorn.socket")
    if not isinstance(connection, socket.socket) or not hasattr(select, "epoll"):
        yield
        return
    watcher = _the_watcher()
    number = watcher.add(connection, token)
    try:
        yield
    finally:
        watcher.remove(number, token)


class _Watcher:
    """One thread that sleeps in epoll until a watched client goes. It reads nothing of what clients send."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._tokens: dict[int, CancelToken] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, name="clients", daemon=True).start()

    def add(self, connection: socket.socket, token: CancelToken) -> int:
        number = connection.fileno()
        with self._lock:
            # A hangup is reported at once if it has happened already, and once only.
            self._epoll.register(number, select.EPOLLRDHUP | select.EPOLLONESHOT)
            self._tokens[number] = token
        return number

    def remove(self, number: int, token: CancelToken) -> None:
        """Forget a client, unless its connection was closed before and the number is another's by now."""
        with self._lock:
            if self._tokens.get(number) is token:
                del self._tokens[number]
                with suppress(OSError):  # closing has taken it out
                    self._epoll.unregister(number)

    def _watch(self) -> None:
        while True:
            for number, _ in self._epoll.poll():
                if token := self._token_of_gone(number):
                    _cancel(token)

    def _token_of_gone(self, number: int) -> CancelToken | None:
        """Look again under the lock: by now the number may be another connection's."""
        with self._lock:
            if number not in self._tokens:
                return None
            now = select.poll()
            now.register(number, select.POLLRDHUP)
            return self._tokens[number] if now.poll(0) else None


def _cancel(token: CancelToken) -> None:
    try:
        token.cancel()
    except Exception:  # the other clients are watched on
        logger.exception("a request whose client has gone could not be cancelled")


_watcher: _Watcher | None = None
_watcher_lock = threading.Lock()


def _the_watcher() -> _Watcher:
    """Return the process's watcher, started when the first request needs it: threads do not survive a fork."""
    global _watcher  # noqa: PLW0603
    with _watcher_lock:
        if _watcher is None:
            _watcher = _Watcher()
        return _watcher
