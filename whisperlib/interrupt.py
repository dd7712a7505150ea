"""Why a running or waiting request must stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from whisperlib.errors import DeadlineExceeded, InterruptedTranscription, TranscriptionCancelled
from whisperlib.options import TranscribeOptions


class Interrupt:
    """Why a request must stop: its cancel token, its deadline, or the adapter's closing."""

    def __init__(self, options: TranscribeOptions, closing: threading.Event, started: float) -> None:
        self.token = options.cancel
        self._closing = closing
        self._abandoned = False
        self._listener: Callable[[], object] | None = None
        self.timeout_seconds = options.timeout_seconds
        self.deadline = None if options.timeout_seconds is None else started + options.timeout_seconds

    def abandon(self) -> None:
        """Stop because nobody waits for the result any more."""
        self._abandoned = True
        if listener := self._listener:
            listener()

    @contextmanager
    def calling(self, listener: Callable[[], object]) -> Iterator[None]:
        """Have `listener` called when the request is cancelled or abandoned, at once if it is already."""
        self._listener = listener
        if self._abandoned:
            listener()
        if self.token:
            self.token.add_listener(listener)
        try:
            yield
        finally:
            self._listener = None
            if self.token:
                self.token.remove_listener(listener)

    def reason(self) -> InterruptedTranscription | None:
        """Return the exception to raise, or None to go on."""
        if self._closing.is_set():
            return TranscriptionCancelled("the adapter was closed during the request")
        if self._abandoned or (self.token and self.token.cancelled):
            return TranscriptionCancelled("the request was cancelled")
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return DeadlineExceeded(f"the deadline of {self.timeout_seconds:g} s has passed")
        return None

    def remaining_seconds(self) -> float | None:
        """Seconds to the deadline, at least 0; None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def check(self) -> None:
        """Raise what `reason` gives."""
        if reason := self.reason():
            raise reason
