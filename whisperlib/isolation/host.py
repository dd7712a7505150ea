"""The engine's process: a `WhisperLibraryAdapter`, asked through a channel."""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection
from typing import NoReturn

from whisperlib import binding
from whisperlib.adapter import WhisperLibraryAdapter
from whisperlib.audio import Decoded
from whisperlib.errors import EngineError, WhisperlibError
from whisperlib.isolation.channel import Channel, mapped
from whisperlib.isolation.messages import (
    LOADING,
    Ask,
    Cancel,
    Close,
    Done,
    Failed,
    Load,
    Loaded,
    Logged,
    Order,
    Progressed,
    Query,
    Queued,
    Settled,
)
from whisperlib.options import CancelToken
from whisperlib.results import LanguageGuess, Segment, Transcription

logger = logging.getLogger(__name__)

ARENAS = 2  # of the allocator, for however many threads
MAX_CALLS = 4096  # threads, each of which waits for one

_CALL: ContextVar[int | None] = ContextVar("call", default=None)  # the engine's threads take it over with the request


def run(descriptor: int) -> NoReturn:
    """Serve the other end of the channel until it is closed."""
    os.set_inheritable(descriptor, False)
    # The parent says when to stop, or ends; a service manager sends these to all processes of a service.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    faulthandler.enable(all_threads=False)  # a crash in native code says where
    binding.share_arenas(ARENAS)
    _Host(Channel(Connection(descriptor))).run()


class _Relay(QueueHandler):
    """Sends what is logged here to the parent's log."""

    queue: Channel  # type: ignore[assignment]

    def enqueue(self, record: logging.LogRecord) -> None:
        self.queue.send(Logged(_CALL.get(), record))


class _Host:
    """Takes orders in one thread, and works on each request in one of its own."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._adapter: WhisperLibraryAdapter | None = None
        self._cancels: dict[int, CancelToken] = {}
        self._calls = ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="call")

    def run(self) -> NoReturn:
        while True:
            try:
                order = self._channel.receive()
            except (EOFError, OSError):
                os._exit(0)  # nobody is left to whom what runs could matter
            self._take(order)

    def _take(self, order: Order) -> None:
        match order:
            case Load():
                threading.Thread(target=self._load, args=(order,), name="load", daemon=True).start()
            case Ask():
                file = self._channel.receive_file()
                self._cancels[order.call] = cancel = CancelToken()
                self._calls.submit(self._answer, order, file, cancel)
            case Cancel():
                if token := self._cancels.get(order.call):
                    token.cancel()
            case Query():
                self._channel.send(Done(order.call, self._tell(order)))
            case Close():
                threading.Thread(target=self._close, name="close", daemon=True).start()

    @property
    def _engine(self) -> WhisperLibraryAdapter:
        assert self._adapter  # noqa: S101 (requests come after it was told that it is there)
        return self._adapter

    def _load(self, order: Load) -> None:
        for name, level in order.log_levels.items():
            logging.getLogger(name).setLevel(level)
        logging.getLogger().addHandler(_Relay(self._channel))  # type: ignore[arg-type]
        try:
            self._adapter = WhisperLibraryAdapter(order.model, settings=order.settings)
        except BaseException as error:
            self._fail(LOADING, error)
            os._exit(1)
        gc.freeze()  # what is there now stays: to collect what a request left takes no time
        config = replace(self._adapter.config, isolation="process")
        self._channel.send(Loaded(config, self._adapter.cache is not None))

    def _answer(self, order: Ask, file: int, cancel: CancelToken) -> None:
        _CALL.set(order.call)
        stopped = True
        try:
            result = self._work(order, Decoded(mapped(file), order.started, order.decode_seconds), cancel)
        except BaseException as error:
            self._fail(order.call, error)
        else:
            stopped = isinstance(result, Transcription) and not result.complete
            if isinstance(result, Transcription):
                result = replace(result, text="", segments=())  # which were sent as they were settled
            self._channel.send(Done(order.call, result))
        finally:
            del self._cancels[order.call]
        if stopped:
            gc.collect()  # an error has the frames that it passed, and these the audio, which may be large

    def _work(self, order: Ask, audio: Decoded, cancel: CancelToken) -> Transcription | LanguageGuess:
        progress = partial(self._report, order.call) if order.progress else None
        options = order.options.model_copy(update={"cancel": cancel, "progress": progress})
        if order.kind == "detect_language":
            return self._engine.detect_language(audio, options)
        job = self._engine.start(audio, options, partial(self._give_out, order.call))
        if order.kind == "stream":
            self._channel.send(Queued(order.call, job.cache))
        return job.result()

    def _give_out(self, call: int, segment: Segment) -> None:
        self._channel.send(Settled(call, segment))

    def _report(self, call: int, fraction: float) -> None:
        self._channel.send(Progressed(call, fraction))

    def _tell(self, order: Query) -> object:
        if order.what == "workload":
            return self._engine.workload()
        return self._engine.cache and self._engine.cache.stats()

    def _fail(self, call: int, error: BaseException) -> None:
        """Say what was raised, if the other process is sure to know its class."""
        if not isinstance(error, WhisperlibError):
            logger.error("an error that was not foreseen: %s", error, exc_info=error)
            if type(error).__module__ != "builtins":
                error = EngineError(f"{type(error).__name__}: {error}")
        self._channel.send(Failed(call, error))

    def _close(self) -> None:
        if self._adapter:
            self._adapter.close()
            self._calls.shutdown()  # each has told how it ended
        os._exit(0)
