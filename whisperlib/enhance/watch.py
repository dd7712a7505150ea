"""What ends a call to a server: its deadline, or its cancel, whatever the call waits for at that moment."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress

from whisperlib.errors import LanguageModelError
from whisperlib.options import CancelToken


class Watch:
    """Shuts the connections that it holds when `seconds` have passed or `cancel` is cancelled. Use it with `with`."""

    def __init__(self, seconds: float, cancel: CancelToken | None = None) -> None:
        self._limit_seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._cancel = cancel
        self._sockets: list[socket.socket] = []
        self._over = False
        self._lock = threading.Lock()
        self._timer = threading.Timer(max(seconds, 0), self._end)
        self._timer.daemon = True

    def __enter__(self) -> Watch:
        self._timer.start()
        if self._cancel:
            self._cancel.add_listener(self._end)
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        if self._cancel:
            self._cancel.remove_listener(self._end)

    def remaining_seconds(self) -> float:
        """Seconds that are left, above 0. Raises as `check` does."""
        self.check()
        return max(self._deadline - time.monotonic(), 0.001)

    def check(self) -> None:
        """Raise LanguageModelError if it is over."""
        if self._cancel and self._cancel.cancelled:
            raise LanguageModelError("the clean-up was cancelled")
        if time.monotonic() >= self._deadline:
            raise LanguageModelError(f"the language model was not done within {self._limit_seconds:.3g} s")

    def hold(self, connection: socket.socket) -> None:
        """Shut this connection when it is over, or now if it is."""
        with self._lock:
            self._sockets.append(connection)
            if self._over:
                _shut(connection)

    def release(self) -> None:
        """Forget the connections: they are closed, and their numbers may be others' by now."""
        with self._lock:
            self._sockets.clear()

    def _end(self) -> None:
        with self._lock:
            self._over = True
            for connection in self._sockets:
                _shut(connection)


def _shut(connection: socket.socket) -> None:
    """Wake whoever reads from it, beneath TLS, which is not made for a second thread."""
    with suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
