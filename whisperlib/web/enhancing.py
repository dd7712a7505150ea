"""The clean-up of a text: it takes no slot of the engine, leases no model, and ends when its client goes."""

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
from whisperlib.options import CancelToken
from whisperlib.results import Transcription
from whisperlib.web import metrics, schemas, stream
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


def plan(admission: Admission, asked: Mode | None, timeout_seconds: float | None = None) -> CleanUp | None:
    """Say what will be done to the text of a request that is inside; None for nothing at all. Else as `prepare`."""
    mode = chosen(asked)
    return None if mode == "never" else prepare(admission, mode, timeout_seconds)


def prepare(admission: Admission, mode: Mode, timeout_seconds: float | None = None) -> CleanUp:
    """Return the clean-up of a request that is inside and has this deadline of its own, if any.

    Raises ApiError where a clean-up must be and cannot.
    """
    check(mode)
    longest = min(timeout_seconds or math.inf, admission.settings.request_timeout_seconds)
    return CleanUp(mode, _language_model(), admission, longest)


def chosen(asked: Mode | None) -> Mode:
    """Return what is asked for, or what this server does where nothing is."""
    return asked or ("never" if _language_model() is None else "auto")


def check(asked: Mode | None, param: str = "enhance") -> None:
    """Raise ApiError where a clean-up must be and cannot; `param` is the field that says so."""
    if asked == "always" and _language_model() is None:
        message = f"{param} = 'always': this server has no language model, which WHISPER_LLM_BASE_URL would name"
        raise ApiError(400, message, code="invalid_option", param=param)


def clean_up(result: Transcription, mode: Mode, cancel: CancelToken, seconds: float | None = None) -> Enhancement:
    """Clean a result's text up, within `seconds`, and count it."""
    enhancement = _enhancer(_language_model(), mode, result).enhance(*_job(result, cancel, seconds))
    metrics.enhanced(enhancement)
    return enhancement


def _language_model() -> Enhancer | None:
    enhancer: Enhancer | None = current_app.extensions[ENHANCER]
    return enhancer


def _enhancer(enhancer: Enhancer | None, mode: Mode, result: Transcription) -> Enhancer | _Skipping:
    if enhancer is None:
        return _Skipping("this server has no language model")
    reason = why_not(mode, result.model)
    return _Skipping(reason, enhancer.model.name) if reason else enhancer


def _job(
    result: Transcription, cancel: CancelToken, seconds: float | None
) -> tuple[str, str | None, CancelToken, float | None]:
    """Return what an enhancer is asked with."""
    return result.text, "en" if result.task == "translate" else result.language, cancel, seconds


def line(event: EnhancementEvent) -> str:
    """Write an event of a clean-up as a server-sent one."""
    if isinstance(event, Delta):
        return stream.event({"text": event.text}, "enhancement.delta")
    if isinstance(event, Enhancement):
        return stream.event({**schemas.clean_up(event), "seconds": round(event.seconds, 4)}, "enhancement.done")
    return stream.KEEP_ALIVE


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
    """The clean-up that one request asks for, within `timeout_seconds` from its beginning."""

    mode: Mode
    enhancer: Enhancer | None
    admission: Admission
    timeout_seconds: float

    def run(self, result: Transcription, spent_seconds: float = 0.0) -> Enhancement:
        """Clean a result's text up, without the model; the request has taken `spent_seconds` already.

        Raises ApiError with status 499 where the client has gone meanwhile.
        """
        self.admission.give_model_back()
        seconds = self._seconds_left(spent_seconds)
        enhancement = _enhancer(self.enhancer, self.mode, result).enhance(*_job(result, self.admission.stop, seconds))
        self._record(enhancement)
        if self.admission.gone.cancelled:
            raise ApiError(CLIENT_CLOSED_REQUEST, "the client went away", code="client_gone")
        return enhancement

    def stream(self, result: Transcription) -> Iterator[EnhancementEvent]:
        """Clean a result's text up, giving it as it is produced; the Enhancement comes last.

        The request is counted and its client watched until what this gives has ended or is closed.
        """
        return _begun(self._counted_events(result))

    def follow(self, events: Iterator[Event]) -> Iterator[Event | EnhancementEvent]:
        """Give a stream's events, and after its Outcome those of the clean-up; the Enhancement comes last."""
        return _begun(self._following_events(events))

    def _counted_events(self, result: Transcription) -> Iterator[Any]:
        with self.admission.closing.pop_all():
            yield None
            yield from self._events(result, 0.0)

    def _following_events(self, events: Any) -> Iterator[Any]:
        with closing(events):
            yield None
            for event in events:
                yield event
                if isinstance(event, Outcome):  # until `events` goes on, the request is counted and its client watched
                    yield from self._events(event.result, event.total_seconds)

    def _events(self, result: Transcription, spent_seconds: float) -> Iterator[EnhancementEvent]:
        self.admission.give_model_back()
        happened = queue.SimpleQueue[Any]()
        with _stopped_with(self.admission.stop) as cancel:
            threading.Thread(
                target=self._produce, args=(result, spent_seconds, cancel, happened), name="enhancement", daemon=True
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

    def _produce(
        self, result: Transcription, spent_seconds: float, cancel: CancelToken, happened: queue.SimpleQueue[Any]
    ) -> None:
        """Hand on what the language model gives, so that its reader can also say that it waits."""
        try:
            job = _job(result, cancel, self._seconds_left(spent_seconds))
            for event in _enhancer(self.enhancer, self.mode, result).stream(*job):
                happened.put(event)
        except BaseException as error:  # raised in the reader's thread
            happened.put(error)

    def _seconds_left(self, spent_seconds: float) -> float:
        """The request's own deadline counts for the clean-up, too."""
        return max(self.timeout_seconds - spent_seconds, 0.0)

    def _record(self, enhancement: Enhancement) -> None:
        self.admission.record.update(enhancement=enhancement.status, enhance_seconds=enhancement.seconds)
        with self.admission.app.app_context():  # a stream ends when the request's own context is gone
            metrics.enhanced(enhancement)


def _begun(events: Iterator[Any]) -> Iterator[Any]:
    """Take the first event, which is none: a generator that has begun cleans up wherever it is dropped."""
    next(events)
    return events


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
