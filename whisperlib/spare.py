"""A fresh state made ahead, so that a request need not wait for the allocation."""

from __future__ import annotations

import threading

from whisperlib.binding import Context, State


class SpareState:
    """Keeps at most one state that nothing has run on. Safe to use from many threads."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._state: State | None = None
        self._given_up = False

    def take(self) -> State:
        """Return a fresh state: the spare one, or else a new one. It is the caller's, who closes it after one use."""
        with self._lock:
            state, self._state = self._state, None
        return state or self._context.new_state()

    def prepare(self) -> None:
        """Make the spare, if there is none. Raises OutOfMemoryError."""
        with self._lock:
            if not self._state and not self._given_up:
                self._state = self._context.new_state()

    def give_up(self) -> None:
        """Free the spare, and make no other one: whisper.cpp crashes where memory ends while it makes a state."""
        with self._lock:
            self._given_up = True
            state, self._state = self._state, None
        if state:
            state.close()
