"""The clean-up of a request's text: after its slot is free, for as long as its client is there."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from flask import current_app

from whisperlib.enhance import Enhancement, Enhancer, Mode, why_not
from whisperlib.options import CancelToken, TranscribeOptions
from whisperlib.web import metrics
from whisperlib.web.errors import CLIENT_CLOSED_REQUEST, ApiError
from whisperlib.web.running import HEARTBEAT_SECONDS, Admission, Event, Outcome

ENHANCER = "whisper_enhancer"  # its place in `Flask.extensions`; None where there is no language model


@dataclass(frozen=True)
class Delta:
    """A part of the cleaned-up text, as it is produced."""

    text: str


@dataclass(frozen=True)
class KeepAlive:
    """Nothing has happened for `HEARTBEAT_SECONDS`."""


EnhancementEvent: TypeAlias = Delta | KeepAlive | Enhancement


def plan(admission: Admission, options: TranscribeOptions, asked: Mode | None) -> CleanUp | None:
    """Say what will be done to the text of a request that is inside; None for nothing at all.

    Raises ApiError where a clean-up must be and cannot.
    """
    enhancer: Enhancer | None = current_app.extensions[ENHANCER]
    if asked == "always" and enhancer is None:
        message = "enhance = 'always': this server has no language model, which WHISPER_LLM_BASE_URL would name"
        raise ApiError(400, message, code="invalid_option", param="enhance")
    mode = asked or ("auto" if enhancer else "never")
    if mode == "never":
        return None
    if enhancer is None:
        return CleanUp(_Skipping("this server has no language model"), admission, options)
    reason = why_not(mode, admission.adapter.config.model)
    return CleanUp(_Skipping(reason, enhancer.model.name) if reason else enhancer, admission, options)


@dataclass(frozen=True)
class _Skipping:
    """Stands in for an Enhancer where the text is left as it is."""

    reason: str
    model: str | None = None

    def enhance(self, *_: object) -> Enhancement:
        return Enhancement("skipped", reason=self.reason, model=self.model)

    def stream(self, *_: object) -> Iterator[str | Enhancement]:
        yield self.enhance()


@dataclass(frozen=True)
class CleanUp:
    """The clean-up of one request."""

    enhancer: Enhancer | _Skipping
    admission: Admission
    options: TranscribeOptions

    def run(self, outcome: Outcome) -> Enhancement:
        """Clean an outcome's text up. Raises ApiError with status 499 where the client has gone meanwhile."""
        enhancement = self.enhancer.enhance(*self._job(outcome, self.admission.stop))
        self._record(enhancement)
        if self.admission.gone.cancelled:
            raise ApiError(CLIENT_CLOSED_REQUEST, "the client went away", code="client_gone")
        return enhancement

    def follow(self, events: Iterator[Event]) -> Iterator[Event | EnhancementEvent]:
        """Give a stream's events, and after its Outcome those of the clean-up; the Enhancement comes last."""
        following = self._events(events)
        next(following)  # a generator that has begun cleans up wherever it is dropped
        return following

    def _events(self, events: Any) -> Iterator[Any]:
        with closing(events):
            yield None
            for event in events:
                yield event
                if isinstance(event, Outcome):  # until `events` goes on, the request is counted and its client watched
                    yield from self._enhancement_events(event)

    def _enhancement_events(self, outcome: Outcome) -> Iterator[EnhancementEvent]:
        happened = queue.SimpleQueue[Any]()
        with _stopped_with(self.admission.stop) as cancel:
            threading.Thread(
                target=self._produce, args=(outcome, cancel, happened), name="enhancement", daemon=True
            ).start()
            while True:
                try:
                    event = happened.get(timeout=HEARTBEAT_SECONDS)
                except queue.Empty:
                    yield KeepAlive()
                    continue
                if isinstance(event, BaseException):
                    raise event
                if isinstance(event, Enhancement):
                    self._record(event)
                    yield event
                    return
                yield Delta(event)

    def _produce(self, outcome: Outcome, cancel: CancelToken, happened: queue.SimpleQueue[Any]) -> None:
        """Hand on what the language model gives, so that its reader can also say that it waits."""
        try:
            for event in self.enhancer.stream(*self._job(outcome, cancel)):
                happened.put(event)
        except BaseException as error:  # raised in the reader's thread
            happened.put(error)

    def _job(self, outcome: Outcome, cancel: CancelToken) -> tuple[str, str | None, CancelToken, float]:
        """Return what the enhancer is asked with; the request's own deadline counts for the clean-up, too."""
        result = outcome.result
        language = "en" if result.task == "translate" else result.language
        seconds = min(self.options.timeout_seconds or math.inf, self.admission.settings.request_timeout_seconds)
        return result.text, language, cancel, max(seconds - outcome.total_seconds, 0.0)

    def _record(self, enhancement: Enhancement) -> None:
        self.admission.record.update(enhancement=enhancement.status, enhance_seconds=enhancement.seconds)
        with self.admission.app.app_context():  # a stream ends when the request's own context is gone
            metrics.enhanced(enhancement)


@contextmanager
def _stopped_with(stop: CancelToken) -> Iterator[CancelToken]:
    """Give a token that is cancelled with `stop`, and at the end of the block."""
    token = CancelToken()
    stop.add_listener(token.cancel)
    try:
        yield token
    finally:
        stop.remove_listener(token.cancel)
        token.cancel()
