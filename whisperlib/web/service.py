"""The models as the server sees them: loading, ready, failed, stopping; and how many requests are inside."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Literal, Protocol

from flask import current_app

from whisperlib import cache, models
from whisperlib.engine import Engine
from whisperlib.errors import (
    ClosedError,
    MemoryBudgetError,
    ModelError,
    ModelNotFoundError,
    OverloadedError,
    UnavailableError,
    WhisperlibError,
)
from whisperlib.models import CATALOGUE
from whisperlib.options import CancelToken
from whisperlib.pool import ModelPool
from whisperlib.settings import MAX_SHOWN_CHARACTERS, Settings, get_settings
from whisperlib.web.errors import ApiError

logger = logging.getLogger(__name__)

Phase = Literal["loading", "ready", "failed", "stopping"]

EXTENSION = "whisper_service"  # its place in `Flask.extensions`
OPENAI_ALIAS = "whisper-1"  # what clients of OpenAI's service ask for
ALIASES = ("auto", OPENAI_ALIAS)  # of the default model
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
    """The models behind a web server. Safe to use from many threads.

    `load` makes an engine; it runs in the thread that calls `start`, or later in that of a request. Until `start` has
    ended every request is answered with UnavailableError.
    """

    def __init__(self, settings: Settings | None = None, load: Callable[[str], Engine] | None = None) -> None:
        self.settings = cache.for_server(settings or get_settings())
        self.pool = ModelPool.from_settings(self.settings, load)
        self._default = self.settings.model_size
        self._default_name = self._default
        self._phase: Phase = "loading"
        self._reason: str | None = None
        self._changed = threading.Condition()
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
        """The default model, to look at: only what is leased stays. Raises UnavailableError while it is not loaded."""
        engine = self.pool.engine(self._default)
        if engine is None:
            raise UnavailableError(self._why_none(), RETRY_SECONDS)
        return engine

    @property
    def default_name(self) -> str:
        """Name of the model of requests that name none."""
        return self._default_name

    def check_ready(self) -> None:
        """Raise UnavailableError while no request is taken."""
        if self._phase != "ready":
            raise UnavailableError(self._why_none(), RETRY_SECONDS)

    def served(self) -> dict[str, Path]:
        """Return the models that may be asked for, and their files, the default first.

        They are those that are loaded at the start, and those whose files are in the model root: nothing is fetched
        because a client asks for it.
        """
        keys = {self._default_name: self._default, **{name: name for name in (*self.settings.preload, *self._there())}}
        return {name: path for name, key in keys.items() if (path := self._path_of(key))}

    def serves_one(self) -> bool:
        """Whether there is no other model than the default that could be asked for."""
        return not ({*self.settings.preload, *self._there()} - {self._default_name})

    def key_of(self, name: str | None) -> str:
        """Return what the pool knows a model by that a client asks for; None is the default.

        Raises ApiError with status 404 where it is not served, ModelFileError where its file is damaged.
        """
        if name is None or name in (*ALIASES, self._default_name):
            return self._default
        if name in {*self.settings.preload, *self._there()}:
            try:
                return models.resolve(name, settings=self.settings).name
            except ModelNotFoundError as error:
                logger.warning("%s was asked for: %s", name, error)
        raise self.no_such_model(name)

    def name_of(self, key: str) -> str:
        """Return the name that clients give to what the pool knows by `key`."""
        return self._default_name if key == self._default else key

    def no_such_model(self, name: str) -> ApiError:
        """Say that a model is not served, and which are."""
        names = ", ".join(map(repr, (*self.served(), OPENAI_ALIAS)))
        message = f"the model {name[:MAX_SHOWN_CHARACTERS]!r} is not served here: ask for one of {names}"
        return ApiError(404, message, code="model_not_found", param="model")

    def lease(
        self,
        name: str | None = None,
        *,
        keep_alive_seconds: float | None = None,
        max_wait_seconds: float | None = None,
        cancel: CancelToken | None = None,
        background: bool = False,
    ) -> AbstractContextManager[Engine]:
        """Lend a model, as `ModelPool.lease` does, under the name that a client gives it.

        The wait is limited by the settings, too. Raises what `key_of` and `ModelPool.lease` raise.
        """
        longest = self.settings.max_wait_seconds
        return self.pool.lease(
            self.key_of(name),
            keep_alive_seconds=keep_alive_seconds,
            max_wait_seconds=longest if max_wait_seconds is None else min(max_wait_seconds, longest),
            cancel=cancel,
            background=background,
        )

    def start(self, *, delay_seconds: float = 0.0, reason: str | None = None) -> None:
        """Load the models, after `delay_seconds`, in which `reason` says why. Nothing if told to stop by then.

        A failure is kept in `reason`, logged, and raised.
        """
        self._reason = reason
        if self.wait_for_stop(delay_seconds):
            return
        try:
            with self.pool.lease(self._default) as engine:
                self._default_name = engine.config.model
            for name in self.settings.preload:
                self.pool.load(name)
            self._check_all_stay()
        except BaseException as error:
            if self._phase == "stopping" and isinstance(error, ClosedError):
                return
            foreseen = isinstance(error, WhisperlibError)
            message = " ".join(str(error).split())
            self._reason = message if foreseen and message else f"{type(error).__name__}: {message}"
            self._set_phase("failed")
            logger.error("the model could not be loaded: %s", self._reason, exc_info=None if foreseen else error)
            raise
        self._reason = None
        threading.Thread(target=self.pool.watch, name="idle models", daemon=True).start()
        self._set_phase("ready")
        if self._phase == "ready":
            for companion in self._companions:
                companion.start()

    @contextmanager
    def admitted(self, *, needs_model: bool = True) -> Iterator[CancelToken]:
        """Count a request in; give the token that stops it when the server must stop.

        Raises UnavailableError while the model is not ready, or, if it is not needed, when the server stops;
        OverloadedError where so many requests are inside that the probes would find no thread.
        """
        with self._changed:
            if self._phase == "stopping" or (needs_model and self._phase != "ready"):
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
        """Refuse new requests and let those inside end, for `grace_seconds`; stop the rest, and free the models.

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
        self.pool.close()
        return ended

    def _check_all_stay(self) -> None:
        """Raise MemoryBudgetError where a model of the start has made room for another."""
        statuses = [self.pool.status(key) for key in dict.fromkeys((self._default, *self.settings.preload))]
        if any(status.state != "ready" for status in statuses) and self._phase != "stopping":
            sizes = [f"{self.name_of(one.name)} {(one.size_bytes or 0) / 1e6:.0f} MB" for one in statuses]
            raise MemoryBudgetError(
                "the models of the start do not fit together into WHISPER_MEMORY_BUDGET, "
                f"{(self.pool.budget_bytes or 0) / 1e6:.0f} MB: {', '.join(sizes)}: raise it, or name fewer in "
                "WHISPER_PRELOAD"
            )

    def _path_of(self, key: str) -> Path | None:
        """Return a model's file, None where none can be used."""
        try:
            return models.resolve(key, settings=self.settings).path
        except ModelError as error:
            logger.debug("%s is not served: %s", key, error)
            return None

    def _there(self) -> list[str]:
        """Return the names of the models that have a file in the model root, sound or not."""
        root = self.settings.model_root
        return [name for name, model in CATALOGUE.items() if any((root / model.directory).glob("*.bin"))]

    def _why_none(self) -> str:
        if self._phase == "stopping":
            return "the server is stopping"
        if self._phase == "failed":
            return f"the model could not be loaded: {self._reason}"
        if self._phase == "ready":
            return f"the model {self._default_name!r} is not loaded at the moment"
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
