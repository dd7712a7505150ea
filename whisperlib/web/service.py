"""The model as the server sees it: loading, ready, failed, stopping; and how many requests are inside."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

from flask import current_app

from whisperlib import engine
from whisperlib.engine import Engine
from whisperlib.errors import OverloadedError, UnavailableError, WhisperlibError
from whisperlib.options import CancelToken
from whisperlib.settings import Settings, get_settings

logger = logging.getLogger(__name__)

Phase = Literal["loading", "ready", "failed", "stopping"]

EXTENSION = "whisper_service"  # its place in `Flask.extensions`
PROBE_THREADS = 4  # of the server's threads, kept free for /health, /ready and /metrics
RETRY_SECONDS = 5.0  # when to come back to a server that is loading


class Companion(Protocol):
    """Works with the model while it is there, beside the requests."""

    def start(self) -> None:
        """Begin: the model is ready."""

    def stop(self) -> None:
        """Let go of the model: the server stops. Again: nothing happens."""

    def close(self) -> None:
        """Give back what is open: no request is inside any more. Again: nothing happens."""


class Service:
    """One model behind a web server. Safe to use from many threads.

    `load` makes the adapter; it runs in the thread that calls `start`. Until then every request is answered with
    UnavailableError.
    """

    def __init__(self, settings: Settings | None = None, load: Callable[[], Engine] | None = None) -> None:
        self.settings = settings or get_settings()
        self._load = load or (lambda: engine.start(settings=self.settings))
        self._adapter: Engine | None = None
        self._phase: Phase = "loading"
        self._reason: str | None = None
        self._changed = threading.Condition()
        self._closing = threading.Lock()
        self._in_flight: set[CancelToken] = set()
        self._companions: list[Companion] = []

    @property
    def phase(self) -> Phase:
        """What the model is doing."""
        return self._phase

    @property
    def reason(self) -> str | None:
        """Why the model is not there, in one line: it could not be loaded, or crashed. None if there is no trouble."""
        return self._reason

    @property
    def in_flight(self) -> int:
        """Requests that are inside `admitted`."""
        return len(self._in_flight)

    @property
    def adapter(self) -> Engine:
        """The loaded adapter. Raises UnavailableError while there is none."""
        if self._adapter is None:
            raise UnavailableError(self._why_none(), RETRY_SECONDS)
        return self._adapter

    def start(self, *, delay_seconds: float = 0.0, reason: str | None = None) -> None:
        """Load the model, after `delay_seconds`, in which `reason` says why. Nothing if told to stop by then.

        A failure is kept in `reason`, logged, and raised.
        """
        self._reason = reason
        if self.wait_for_stop(delay_seconds):
            return
        try:
            adapter = self._load()
        except BaseException as error:
            foreseen = isinstance(error, WhisperlibError)
            message = " ".join(str(error).split())
            self._reason = message if foreseen and message else f"{type(error).__name__}: {message}"
            self._set_phase("failed")
            logger.error("the model could not be loaded: %s", self._reason, exc_info=None if foreseen else error)
            raise
        self._reason = None
        self._adapter = adapter
        self._set_phase("ready")
        if self._phase == "ready":
            for companion in self._companions:
                companion.start()
        if self._phase == "stopping":  # told to stop while it loaded
            self._free()

    @contextmanager
    def admitted(self) -> Iterator[CancelToken]:
        """Count a request in; give the token that stops it when the server must stop.

        Raises UnavailableError while the model is not ready, OverloadedError where so many requests are inside
        that the probes would find no thread.
        """
        with self._changed:
            if self._phase != "ready":
                raise UnavailableError(self._why_none(), RETRY_SECONDS)
            most = self.settings.http_threads - PROBE_THREADS
            if len(self._in_flight) >= most:
                raise OverloadedError(f"{most} requests are being answered, as many as may be at once", RETRY_SECONDS)
            token = CancelToken()
            self._in_flight.add(token)
        try:
            yield token
        finally:
            with self._changed:
                self._in_flight.discard(token)
                self._changed.notify_all()

    def accompany(self, companion: Companion) -> None:
        """Have `companion` started when the model is ready, now if it is, and stopped before the model is freed."""
        with self._changed:
            self._companions.append(companion)
            ready = self._phase == "ready"
        if ready:
            companion.start()

    def wait_for_stop(self, seconds: float) -> bool:
        """Wait until the server is told to stop, for `seconds` at most; return whether it was."""
        with self._changed:
            return self._changed.wait_for(lambda: self._phase == "stopping", seconds)

    def stop(self, grace_seconds: float | None = None) -> bool:
        """Refuse new requests and let those inside end, for `grace_seconds`; stop the rest, and free the model.

        Left out, `grace_seconds` is `shutdown_seconds`. Returns whether all could end by themselves. Another thread
        may call it again, to shorten the time.
        """
        if grace_seconds is None:
            grace_seconds = self.settings.shutdown_seconds
        self._set_phase("stopping")
        for companion in self._companions:
            companion.stop()
        with self._changed:
            ended = self._changed.wait_for(lambda: not self._in_flight, grace_seconds)
            rest = list(self._in_flight)
        for token in rest:
            token.cancel()
        for companion in self._companions:
            companion.close()
        self._free()
        return ended

    def _free(self) -> None:
        with self._closing:
            if self._adapter is not None:
                self._adapter.close()

    def _why_none(self) -> str:
        if self._phase == "stopping":
            return "the server is stopping"
        if self._phase == "failed":
            return f"the model could not be loaded: {self._reason}"
        return f"the model is still loading{f': {self._reason}' if self._reason else ''}"

    def _set_phase(self, phase: Phase) -> None:
        """Go on to `phase`; once the server stops, it stops."""
        with self._changed:
            if self._phase != "stopping":
                self._phase = phase
            self._changed.notify_all()


def current_service() -> Service:
    """Return the service of the app that handles the request."""
    service: Service = current_app.extensions[EXTENSION]
    return service
