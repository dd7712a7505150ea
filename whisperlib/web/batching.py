"""Batches on the server: the queue where they are kept, and their items put through the model behind all requests."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import BinaryIO, cast

import pydantic
from flask import Flask, current_app
from prometheus_client import Gauge

from whisperlib import batches, models
from whisperlib.batches import BatchQueue, Crashed, Failed, Finished, Item, ItemState, Postponed, Runner, Verdict
from whisperlib.enhance import Enhancement, Mode
from whisperlib.errors import (
    BatchStoreError,
    BusyError,
    ClosedError,
    DeadlineExceeded,
    EngineCrashedError,
    EngineError,
    FetchError,
    MemoryBudgetError,
    TranscriptionCancelled,
    UnavailableError,
    WhisperlibError,
)
from whisperlib.fetch import Fetcher
from whisperlib.options import CancelToken, ProgressCallback, TranscribeOptions
from whisperlib.web import enhancing, log, metrics
from whisperlib.web.errors import problem_of
from whisperlib.web.running import FETCHER, Outcome
from whisperlib.web.service import EXTENSION as SERVICE
from whisperlib.web.service import RETRY_SECONDS, Service

logger = logging.getLogger(__name__)

EXTENSION = "whisper_batches"  # its place in `Flask.extensions`
OPEN_AGAIN_SECONDS = 2.0
MAX_ATTEMPTS = 3  # that end with the end of the process, this one or the model's

_OUTCOME = pydantic.TypeAdapter(Outcome)
_ENHANCEMENT = pydantic.TypeAdapter(Enhancement)


class Batches:
    """The batches of one application. They are opened when the model is ready, or a request needs them."""

    def __init__(self, app: Flask) -> None:
        self._app = app
        self._service: Service = app.extensions[SERVICE]
        self._fetcher: Fetcher = app.extensions[FETCHER]
        self._lock = threading.Lock()
        self._queue: BatchQueue | None = None
        self._runner: Runner | None = None
        self._closed = False
        self._missing: set[str | None] = set()  # models that batches name and that cannot be had

    @property
    def queue(self) -> BatchQueue:
        """Where batches are kept. Raises BatchStoreError where that fails, UnavailableError when the server stops."""
        with self._lock:
            if self._closed:
                raise UnavailableError("the server is stopping", RETRY_SECONDS)
            if self._queue is None:
                self._queue = batches.open_queue(self._service.settings)
            if self._runner is None and self._service.phase == "ready":
                self._runner = self._run(self._queue)
            return self._queue

    def start(self) -> None:
        """Go on with what is there. Where nothing ever was, no directory is made before a request needs it."""
        if batches.is_used(self._service.settings) and (error := self._try_to_open()):
            logger.warning("batches wait: %s", error)
            threading.Thread(target=self._keep_trying, name="batches", daemon=True).start()

    def stop(self) -> None:
        """Give what runs back to the queue."""
        with self._lock:
            runner = self._runner
        if runner:
            runner.stop()

    def close(self) -> None:
        """Close the queue, so that another server can have it."""
        with self._lock:
            self._closed = True
            if self._queue:
                self._queue.close()

    def wake(self) -> None:
        """Look for items at once: a batch came."""
        if runner := self._runner:
            runner.wake()

    def drop_cancelled(self) -> None:
        """Stop items at once whose batch was cancelled or forgotten."""
        if runner := self._runner:
            runner.check_leases()

    def progress(self, batch_id: str) -> float:
        """Tell how much of a batch's running items is done, in items."""
        return self._runner.progress(batch_id) if self._runner else 0.0

    def count_queued(self) -> float:
        """Tell how many items wait; not a number where that cannot be told."""
        try:
            return self._queue.count_queued() if self._queue else 0
        except BatchStoreError:
            return math.nan

    def check_model(self, model: str | None) -> None:
        """Raise ApiError for a model that is not served, UnavailableError while none is."""
        self._service.check_ready()
        self._service.key_of(model)

    def _try_to_open(self) -> Exception | None:
        try:
            self.queue  # noqa: B018  (opened, and run)
        except (BatchStoreError, UnavailableError) as error:
            return error
        return None

    def _keep_trying(self) -> None:
        """Open the queue as soon as that can be: a server that was killed may still have it for a moment."""
        while not self._service.wait_for_stop(OPEN_AGAIN_SECONDS) and self._try_to_open():
            pass

    def _run(self, queue: BatchQueue) -> Runner:
        return Runner(
            queue,
            self._work,
            slots=self._slots(),
            may_begin=self._may_begin,
            on_end=self._count,
            keep_seconds=self._service.settings.batch_keep_seconds,
        )

    def _slots(self) -> int:
        """As many items at once as the default model takes; one where it was unloaded meanwhile."""
        try:
            return self._service.adapter.config.concurrency
        except UnavailableError:
            return 1

    def _may_begin(self, settings: str) -> bool:
        """Whether the model that they name has a free slot, or may be loaded, and nobody waits for any model."""
        model, pool = _model_of(settings), self._service.pool
        try:
            key = self._service.key_of(model)
            engine = pool.engine(key)
            if engine is None:
                models.resolve(key, settings=self._service.settings)
            if self._service.phase != "ready" or not pool.has_room(key):
                return False
        except MemoryBudgetError:
            return True  # nor will it have room later, as the item will say
        except WhisperlibError as error:
            if model not in self._missing:
                logger.warning("batches wait for their model: %s", error)
            self._missing.add(model)
            return False
        self._missing.discard(model)
        if any(one.workload().waiting for one in pool.engines()):
            return False
        return engine is None or engine.workload().running < engine.config.concurrency

    def _work(self, item: Item, cancel: CancelToken, progress: ProgressCallback) -> Verdict:
        log.REQUEST_ID.set(f"{item.batch_id}/{item.index}")
        with self._app.app_context():
            try:
                outcome = self._saved(item)
                if outcome is None and item.attempts > MAX_ATTEMPTS:
                    return _failed(_give_up(), transient=False)
                outcome = outcome or self._transcribe(item, cancel, progress)
                text = encode(outcome)
                enhancement = self._clean_up(item, outcome, text, cancel)
            except (BatchStoreError, BusyError, ClosedError, TranscriptionCancelled) as error:
                return Postponed(getattr(error, "retry_after_seconds", RETRY_SECONDS))
            except EngineCrashedError as error:
                logger.warning("an item of a batch is tried again later, alone: %s", error)
                return Crashed()
            except Exception as error:
                return _failed(error, transient=_may_pass(error))
            duration, seconds = outcome.result.duration, outcome.total_seconds
            logger.info("an item of a batch is done: %.1f s of audio in %.1f s", duration, seconds)
            return Finished(text, duration, enhancement)

    def _saved(self, item: Item) -> Outcome | None:
        """Return what is there from before an interrupted clean-up, unless another version of whisperlib wrote it."""
        with suppress(ValueError):
            return decode(item.result) if item.result else None
        return None

    def _transcribe(self, item: Item, cancel: CancelToken, progress: ProgressCallback) -> Outcome:
        started = time.monotonic()
        options = TranscribeOptions(**json.loads(item.options)).replace(
            cancel=cancel, progress=progress, background=True
        )
        # The model comes first: where it cannot be had, nothing was fetched in vain.
        with self._service.lease(_model_of(item.settings), cancel=cancel, background=True) as engine:
            fetched = time.monotonic()
            with self._opened(item, cancel) as file:
                fetch_seconds = time.monotonic() - fetched if item.url else 0.0
                result = engine.transcribe(file, options)
                if not result.complete and (cancel.cancelled or engine.closed):  # what a deadline left is a result
                    raise TranscriptionCancelled("stopped before its end", result)
        metrics.observe(result, fetch_seconds)
        return Outcome(result, fetch_seconds, time.monotonic() - started)

    def _clean_up(self, item: Item, outcome: Outcome, text: str, cancel: CancelToken) -> str | None:
        """Clean an item's text up as it asks; whatever comes of that, its transcript, `text`, stays."""
        mode = enhancing.chosen(cast("Mode | None", item.enhance))
        if mode == "never":
            return None
        with suppress(BatchStoreError):  # it is a copy, for the case that this server ends before the clean-up does
            self.queue.save(item, text)
        timeout_seconds = json.loads(item.options).get("timeout_seconds")
        left = timeout_seconds and max(timeout_seconds - outcome.total_seconds, 0.0)
        enhancement = enhancing.clean_up(outcome.result, mode, cancel, left)
        if cancel.cancelled:
            raise TranscriptionCancelled("stopped during the clean-up", outcome.result)
        return _ENHANCEMENT.dump_json(enhancement).decode()

    @contextmanager
    def _opened(self, item: Item, cancel: CancelToken) -> Iterator[BinaryIO]:
        if item.url is None:
            with self.queue.audio(item) as file:
                yield file
            return
        with ExitStack() as stack:
            try:
                fetched = stack.enter_context(self._fetcher.fetch(item.url, cancel=cancel))
            except Exception as error:
                metrics.fetched(problem_of(error).code or "failed")
                raise
            metrics.fetched("ok", fetched.size_bytes)
            yield fetched.file

    def _count(self, state: ItemState) -> None:
        with self._app.app_context():
            metrics.current().batch_items.labels(state).inc()


def _give_up() -> EngineError:
    return EngineError(
        f"the process that had the model ended {MAX_ATTEMPTS} times while this item ran, which may be its audio's "
        "doing: it is not tried again"
    )


def _failed(error: Exception, *, transient: bool) -> Failed:
    """Say that an item failed with `error`, here and in the log."""
    problem = problem_of(error)
    ours = problem.status >= 500
    level = logging.ERROR if ours else logging.INFO
    logger.log(level, "an item of a batch failed: %s", problem.message, exc_info=error if ours else None)
    return Failed(json.dumps(problem.body()["error"]), transient=transient)


def _may_pass(error: Exception) -> bool:
    """Whether what an item failed with may pass: a failure of ours, or of its address for the time being.

    A model that is too large for this server stays so, and a deadline is too short the next time, too.
    """
    if isinstance(error, FetchError):
        return error.transient
    if isinstance(error, (MemoryBudgetError, DeadlineExceeded)):
        return False
    problem = problem_of(error)
    return problem.status >= 500 or problem.code == "model_not_found"


def _model_of(settings: str) -> str | None:
    model: str | None = json.loads(settings)["model"]
    return model


def decode_enhancement(text: str | None) -> Enhancement | None:
    """Read a clean-up, if there was one. Raises ValueError where another version of whisperlib wrote it."""
    return None if text is None else _ENHANCEMENT.validate_json(text)


def encode(outcome: Outcome) -> str:
    """Write an outcome for the queue."""
    return json.dumps(_OUTCOME.dump_python(outcome, mode="json"))  # pydantic's own JSON has null for NaN


def decode(text: str) -> Outcome:
    """Read an outcome. Raises ValueError where another version of whisperlib wrote it."""
    return _OUTCOME.validate_json(text)


def register(app: Flask) -> None:
    """Have `app` work batches off while its model is there."""
    app.extensions[EXTENSION] = found = Batches(app)
    registry = app.extensions[metrics.EXTENSION].registry
    queued = Gauge("whisper_batch_queued_items", "Items of batches that wait.", registry=registry)
    queued.set_function(found.count_queued)
    service: Service = app.extensions[SERVICE]
    service.accompany(found)


def current() -> Batches:
    """Return the batches of the app that handles the request."""
    found: Batches = current_app.extensions[EXTENSION]
    return found
