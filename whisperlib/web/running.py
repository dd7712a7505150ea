"""One transcription from the web: let in, its audio fetched, the adapter, and the record of it.

with admitted() as admission:       # before the body is read: a full server refuses without it
    audio, options, model = …       # from the body
    admission.use(model)            # left out, it is the default
    outcome = transcribe(audio, options)
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, TypeAlias

from flask import Flask, current_app, g, request

from whisperlib.engine import Engine
from whisperlib.errors import (
    ClosedError,
    DeadlineExceeded,
    FetchTimeoutError,
    InterruptedTranscription,
    OverloadedError,
    UnavailableError,
)
from whisperlib.fetch import Fetcher
from whisperlib.job import TranscriptionStream
from whisperlib.options import CancelToken, ProgressCallback, TranscribeOptions
from whisperlib.results import Segment, Transcription
from whisperlib.settings import Settings
from whisperlib.web import metrics
from whisperlib.web.client import cancel_when_gone
from whisperlib.web.errors import CLIENT_CLOSED_REQUEST, ApiError, problem_of
from whisperlib.web.service import RETRY_SECONDS, Service, current_service

FETCHER = "whisper_fetcher"  # its place in `Flask.extensions`
HEARTBEAT_SECONDS = 10.0  # a stream says something at least so often: writing tells whether the client is there


@dataclass(frozen=True)
class Upload:
    """Audio that came with the request: a seekable file that stands at 0."""

    file: BinaryIO


@dataclass(frozen=True)
class Remote:
    """Audio that the server is to fetch."""

    url: str


Audio: TypeAlias = Upload | Remote


@dataclass(frozen=True)
class Progress:
    """How much of the work is done: `fraction` is 0 to 1."""

    fraction: float


@dataclass(frozen=True)
class Outcome:
    """A result, and the seconds that fetching the audio and the whole took; the upload is not counted."""

    result: Transcription
    fetch_seconds: float
    total_seconds: float


Event: TypeAlias = Segment | Progress | Outcome


@dataclass
class Admission:
    """A request that was let in. `stop` stops its work; `gone` is cancelled when its client has gone."""

    app: Flask
    service: Service
    stop: CancelToken
    gone: CancelToken
    record: dict[str, Any]
    closing: ExitStack
    started: float = field(default_factory=time.monotonic)  # the clock when the model was asked for
    _leased: Engine | None = None
    _lease: ExitStack = field(default_factory=ExitStack)

    @property
    def settings(self) -> Settings:
        """The server's settings."""
        return self.service.settings

    @property
    def adapter(self) -> Engine:
        """The model that the request runs on: the default, unless `use` was told another."""
        return self._leased or self.use()

    def use(
        self,
        model: str | None = None,
        *,
        keep_alive_seconds: float | None = None,
        max_wait_seconds: float | None = None,
    ) -> Engine:
        """Lease the model that the client names, as `Service.lease` does, until `give_model_back` or the end; once.

        Raises what `Service.lease` raises; OverloadedError where the wait for a slot is too long already;
        UnavailableError where the server stops meanwhile, and ApiError with status 499 where the client has gone.
        """
        self.started = time.monotonic()
        lease = self.service.lease(
            model, keep_alive_seconds=keep_alive_seconds, max_wait_seconds=max_wait_seconds, cancel=self.stop
        )
        try:
            self._leased = self._lease.enter_context(lease)
        except (InterruptedTranscription, ClosedError) as error:
            raise self.why_stopped() from error
        self.closing.push(self._lease)
        self.record["model"] = self._leased.config.model
        _check_wait(self._leased, self.settings)
        return self._leased

    def give_model_back(self) -> None:
        """End the lease, if there is one, before the request ends: what is left to do needs no model."""
        self._lease.close()

    def why_stopped(self) -> ApiError | UnavailableError:
        """Say why the work was stopped, as the client sees it."""
        if self.gone.cancelled:
            return ApiError(CLIENT_CLOSED_REQUEST, "the client went away", code="client_gone")
        return UnavailableError("the server is stopping", RETRY_SECONDS)


@contextmanager
def admitted(*, needs_model: bool = True) -> Iterator[Admission]:
    """Count the request in, and watch for its client's going, until the block ends or what `stream` gave is closed.

    Within another `admitted` it is that one. Raises OverloadedError where the wait for the model is too long already,
    and what `Service.admitted` raises.
    """
    if "admission" in g:
        yield g.admission
        return
    service = current_service()
    with ExitStack() as closing:
        stop, gone = closing.enter_context(service.admitted(needs_model=needs_model)), CancelToken()
        gone.add_listener(stop.cancel)
        closing.enter_context(cancel_when_gone(request.environ, gone))
        if needs_model and service.serves_one() and (default := service.pool.engine(service.settings.model_size)):
            _check_wait(default, service.settings)
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
        record = g.setdefault("record", {})
        g.admission = Admission(app, service, stop, gone, record, closing)
        try:
            yield g.admission
        finally:
            g.pop("admission")


def transcribe(audio: Audio, options: TranscribeOptions) -> Outcome:
    """Transcribe for the client that is asking.

    Raises what the fetcher and `WhisperLibraryAdapter.transcribe` raise; UnavailableError where the server stops
    meanwhile, DeadlineExceeded, and ApiError with status 499 where the client has gone.
    """
    with admitted() as admission:
        work = _Work(admission, options)
        with work.explained(), work.submit(audio) as running:
            return work.outcome(running.result)


def stream(audio: Audio, options: TranscribeOptions) -> Iterator[Event]:
    """Transcribe as `transcribe` does, giving each segment as soon as it is settled; the Outcome comes last.

    The audio is there and decoded, and the request queued, before this returns, so that what is wrong by then is
    raised here. While nothing else happens, Progress comes every `HEARTBEAT_SECONDS`. How fast it is read holds
    nothing up; to close or to drop it stops the work.
    """
    events = _events(audio, options)
    next(events)
    return events


def _events(audio: Audio, options: TranscribeOptions) -> Iterator[Event]:
    with admitted() as admission:
        work = _Work(admission, options)
        kept = admission.closing.pop_all()
    with kept:
        happened = queue.SimpleQueue[Event | Transcription | BaseException]()
        with work.explained(), work.submit(audio, lambda fraction: happened.put(Progress(fraction))) as running:
            threading.Thread(target=_follow, args=(running, happened), name="stream", daemon=True).start()
            event: Any = Progress(0.0)
            yield event  # taken by `stream`: a generator that has begun cleans up wherever it is dropped
            while not isinstance(event, Transcription):
                yield event
                if isinstance(event, Progress):
                    progress = event
                try:
                    event = happened.get(timeout=HEARTBEAT_SECONDS)
                except queue.Empty:
                    event = progress
                if isinstance(event, BaseException):
                    raise event
            yield work.outcome(event)


def _follow(running: TranscriptionStream, happened: queue.SimpleQueue[Any]) -> None:
    """Hand on what a running request gives, until its end, so that its reader can wait for other things as well."""
    try:
        for segment in running:
            happened.put(segment)
        happened.put(running.result)
    except BaseException as error:  # raised in the reader's thread
        happened.put(error)


class _Work:
    """One request's way from its audio to its outcome."""

    def __init__(self, admission: Admission, options: TranscribeOptions) -> None:
        self._admission = admission
        self._options = options
        self._adapter = admission.adapter
        self._started = admission.started
        self._timeout_seconds = min(options.timeout_seconds or math.inf, admission.settings.request_timeout_seconds)
        self._fetch_seconds = 0.0

    def submit(self, audio: Audio, progress: ProgressCallback | None = None) -> TranscriptionStream:
        """Get the audio, decode it, and queue the request."""
        with self._opened(audio) as file:
            longest_wait = self._admission.settings.max_wait_seconds
            asked = self._options.max_wait_seconds
            options = self._options.replace(
                cancel=self._admission.stop,
                progress=progress,
                timeout_seconds=self._remaining_seconds(),
                max_wait_seconds=longest_wait if asked is None else min(asked, longest_wait),
            )
            running = self._adapter.stream(file, options)
            self._admission.record["cache"] = running.cache
            return running

    def outcome(self, result: Transcription) -> Outcome:
        """Write a result down for the log and the metrics."""
        self._record(result)
        with self._admission.app.app_context():  # a stream ends when the request's own context is gone
            metrics.observe(result, self._fetch_seconds)
        return Outcome(result, self._fetch_seconds, time.monotonic() - self._started)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Say why the work was stopped, as the client sees it."""
        try:
            yield
        except (InterruptedTranscription, ClosedError) as error:
            partial = getattr(error, "partial", None)
            if partial:
                self._record(partial)
            if isinstance(error, DeadlineExceeded):
                message = f"the deadline of {self._timeout_seconds:g} s has passed: give a longer timeout_seconds"
                raise DeadlineExceeded(message, partial) from error
            raise self._admission.why_stopped() from error

    @contextmanager
    def _opened(self, audio: Audio) -> Iterator[BinaryIO]:
        if isinstance(audio, Upload):
            yield audio.file
            return
        longest, remaining = self._admission.settings.fetch_timeout_seconds, self._remaining_seconds()
        began = time.monotonic()
        fetch = _fetcher().fetch(audio.url, cancel=self._admission.stop, timeout_seconds=min(longest, remaining))
        with ExitStack() as stack:
            try:
                fetched = stack.enter_context(fetch)
            except Exception as error:
                metrics.fetched(problem_of(error).code or "failed")
                if isinstance(error, FetchTimeoutError) and remaining < longest:
                    raise _no_audio_in_time() from error
                raise
            finally:
                self._fetch_seconds = time.monotonic() - began
                self._admission.record["fetch_seconds"] = self._fetch_seconds
            metrics.fetched("ok", fetched.size_bytes)
            yield fetched.file

    def _remaining_seconds(self) -> float:
        seconds = self._timeout_seconds - (time.monotonic() - self._started)
        if seconds <= 0:
            raise _no_audio_in_time()
        return seconds

    def _record(self, result: Transcription) -> None:
        self._admission.record.update(
            audio_seconds=result.duration,
            decode_seconds=result.timings.decode,
            queue_seconds=result.timings.queue,
            vad_seconds=result.timings.vad,
            inference_seconds=result.timings.inference,
            real_time_factor=result.real_time_factor,
        )


def _no_audio_in_time() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline has passed before the audio was there")


def _check_wait(adapter: Engine, settings: Settings) -> None:
    if adapter.cache is not None:
        return  # the answer may be there already, and only the queue refuses
    wait, most = adapter.workload().wait_seconds, settings.max_wait_seconds
    if wait > most:
        raise OverloadedError(
            f"{wait:.0f} s of work are waiting already and a request may wait for {most:g} s: "
            f"try again in {math.ceil(wait - most)} s",
            wait - most,
        )


def _fetcher() -> Fetcher:
    """Return the app's one fetcher: it bounds how many fetches run at once."""
    fetcher: Fetcher = current_app.extensions[FETCHER]
    return fetcher
