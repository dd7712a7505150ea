"""What ends a call to another server: its deadline, or its cancel, whatever the call waits for at that moment."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

from whisperlib.options import CancelToken


class Watch:
    """Ends what its holder waits for when `seconds` have passed or `cancel` is cancelled. Use it with `with`.

    `late` and `cancelled` make what is raised then.
    """

    def __init__(
        self,
        seconds: float,
        cancel: CancelToken | None = None,
        *,
        late: Callable[[], Exception],
        cancelled: Callable[[], Exception],
    ) -> None:
        self._deadline = time.monotonic() + seconds
        self._expired = False
        self._cancel = cancel
        self._late = late
        self._cancelled = cancelled
        self._end: Callable[[], object] | None = None
        self._lock = threading.Lock()
        self._timer = threading.Timer(max(seconds, 0), self._expire)
        self._timer.daemon = True

    def __enter__(self) -> Watch:
        self._timer.start()
        if self._cancel:
            self._cancel.add_listener(self._end_now)
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        if self._cancel:
            self._cancel.remove_listener(self._end_now)

    def remaining_seconds(self) -> float:
        """Seconds that are left, above 0. Raises as `check` does."""
        self.check()
        return max(self._deadline - time.monotonic(), 0.001)

    def check(self) -> None:
        """Raise what `late` or `cancelled` makes if it is over."""
        if self._cancel and self._cancel.cancelled:
            raise self._cancelled()
        if self._expired or time.monotonic() >= self._deadline:
            raise self._late()

    @contextlib.contextmanager
    def ending(self, end: Callable[[], object]) -> Iterator[None]:
        """Have `end` called, in another thread, if it is over while the block runs. Raises as `check` does."""
        with self._lock:
            self._end = end
        try:
            self.check()  # what came before there was something to end
            yield
        finally:
            with self._lock:
                self._end = None

    def _expire(self) -> None:
        self._expired = True
        self._end_now()

    def _end_now(self) -> None:
        with self._lock:  # so that nothing is ended after its block, when its file number may be another's
            if self._end:
                self._end()


def shut(connection: socket.socket) -> None:
    """Wake whoever reads from it, beneath TLS, which is not made for a second thread."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
