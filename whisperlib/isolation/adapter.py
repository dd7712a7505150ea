"""`IsolatedAdapter`: what `WhisperLibraryAdapter` is, with the model in a process of its own."""

from __future__ import annotations

import logging
import os
import queue
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, NoReturn

from whisperlib.adapter import ModelConfig
from whisperlib.audio import Source
from whisperlib.cache import Stats
from whisperlib.errors import ClosedError, ForkedProcessError, InterruptedTranscription, OptionError
from whisperlib.interrupt import Interrupt
from whisperlib.isolation.call import Call
from whisperlib.isolation.channel import SharedAudio, shared
from whisperlib.isolation.messages import Ask, Done, Failed, Kind, Load
from whisperlib.isolation.process import EngineProcess
from whisperlib.isolation.supervisor import Supervisor
from whisperlib.job import Job, TranscriptionStream
from whisperlib.options import TranscribeOptions, resolve_options
from whisperlib.pcm import SAMPLE_RATE
from whisperlib.results import LanguageGuess, Segment, Timings, Transcription
from whisperlib.scheduler import Workload
from whisperlib.settings import Settings, get_settings

logger = logging.getLogger(__name__)

LOGGERS = ("whisperlib", "whisperlib.native")  # whose levels hold in the process, too


@dataclass(frozen=True)
class KeptResults:
    """The cache, which the process has."""

    stats: Callable[[], Stats]


class IsolatedAdapter:
    """Has a process load a ggml Whisper model, and transcribes with it, from as many threads as like.

    `model` is a name, a file or a directory; None takes the one that the settings name. Calls, options, results and
    errors are those of `WhisperLibraryAdapter`. Audio is decoded here, and its samples shared with the process.

    A crash in native code fails the requests that are in the process with EngineCrashedError; another is started, and
    requests that come meanwhile wait for it. `close` ends the process, which returns all its memory. `progress` is
    called in a thread of its own, and holds the engine up no more. Linux only. A fork's copy cannot be used.
    """

    def __init__(self, model: str | os.PathLike[str] | None = None, *, settings: Settings | None = None) -> None:
        self.settings = settings or get_settings()
        if not hasattr(os, "memfd_create"):
            raise OptionError("WHISPER_ISOLATION = 'process' works on Linux only: give none")
        logger.info("a process is started for %s", model or self.settings.model_size)
        levels = {name: logging.getLogger(name).getEffectiveLevel() for name in LOGGERS}
        self._supervisor = Supervisor(Load(model, self.settings, levels))
        # In whatever thread dropped it, also the one that listens to the process. At the interpreter's end the process
        # sees by itself that nobody is left.
        weakref.finalize(self, self._supervisor.close, wait=False).atexit = False

    @property
    def config(self) -> ModelConfig:
        """What the process runs."""
        return self._supervisor.loaded.config

    @property
    def cache(self) -> KeptResults | None:
        """The results that are kept; None where `WHISPER_CACHE` is off."""
        return KeptResults(self._supervisor.cache_stats) if self._supervisor.loaded.caches else None

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._supervisor.closing.is_set()

    def transcribe(self, source: Source, options: TranscribeOptions | None = None, **overrides: Any) -> Transcription:
        """Transcribe `source` as `WhisperLibraryAdapter.transcribe` does. Also raises EngineCrashedError."""
        call, interrupt = self._ask("transcribe", source, resolve_options(options, overrides))
        return Job[Transcription](call.future, interrupt, _raise).result()

    def stream(self, source: Source, options: TranscribeOptions | None = None, **overrides: Any) -> TranscriptionStream:
        """Transcribe as `transcribe` does, giving each segment as soon as it is settled.

        The audio is read, and the request queued, before this returns; a slow reader holds nothing up.
        """
        segments: queue.SimpleQueue[Segment | None] = queue.SimpleQueue()
        call, interrupt = self._ask("stream", source, resolve_options(options, overrides), segments.put)
        try:
            use = call.queued.result()
        except BaseException:
            interrupt.abandon()
            raise
        return TranscriptionStream(Job(call.future, interrupt, _raise, use), segments)

    def detect_language(
        self, source: Source, options: TranscribeOptions | None = None, **overrides: Any
    ) -> LanguageGuess:
        """Tell the language of the first 30 s of speech. Raises AudioError where there is no speech."""
        call, interrupt = self._ask("detect_language", source, resolve_options(options, overrides))
        return Job[LanguageGuess](call.future, interrupt, _raise).result()

    def workload(self) -> Workload:
        """Tell what runs and waits, and how long a short request would wait now; also for another process."""
        return self._supervisor.workload()

    def close(self) -> None:
        """Stop what runs, within one encoder or decoder step, and end the process. Again: nothing happens."""
        self._supervisor.close()

    def __enter__(self) -> IsolatedAdapter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(
        self,
        kind: Kind,
        source: Source,
        options: TranscribeOptions,
        on_segment: Callable[[Segment], None] | None = None,
    ) -> tuple[Call, Interrupt]:
        """Decode, and hand the request to the process."""
        self._check_usable()
        with shared(source, self.settings.max_audio_seconds) as decoded:
            interrupt = Interrupt(options, self._supervisor.closing, decoded.started)
            call = Call(on_segment, options.progress, interrupt.abandon)
            ask = partial(
                Ask,
                kind=kind,
                options=options.model_copy(update={"cancel": None, "progress": None}),
                progress=options.progress is not None,
                started=decoded.started,
                decode_seconds=decoded.seconds,
            )
            try:
                process, number = self._send(call, ask, decoded.file, interrupt, options.max_wait_seconds)
            except BaseException as error:
                call.take(self._unbegun(kind, options, decoded, error))
                return call, interrupt
        stopping = ExitStack()
        stopping.enter_context(interrupt.calling(partial(self._cancel, process, number)))
        call.future.add_done_callback(lambda _: stopping.close())
        return call, interrupt

    def _send(
        self, call: Call, ask: Callable[[int], Ask], file: int, interrupt: Interrupt, max_wait_seconds: float | None
    ) -> tuple[EngineProcess, int]:
        """Send a request to the process, or to the next one where it has ended and nobody had noticed yet."""
        process = self._supervisor.ready(interrupt, max_wait_seconds)
        while (number := process.ask(call, ask, file)) is None:
            process = self._supervisor.ready(interrupt, max_wait_seconds, ended=process)
        return process, number

    def _cancel(self, process: EngineProcess, number: int) -> None:
        # A method: what runs keeps the adapter, whose process would else end when the caller drops it.
        process.cancel(number)

    def _check_usable(self) -> None:
        if os.getpid() != self._supervisor.owner:
            raise ForkedProcessError(
                f"the engine's process was started by process {self._supervisor.owner} and this is its fork "
                f"{os.getpid()}: load the model after the fork"
            )
        if self.closed:
            raise ClosedError("the adapter was closed")

    def _unbegun(
        self, kind: Kind, options: TranscribeOptions, decoded: SharedAudio, error: BaseException
    ) -> Done | Failed:
        """Tell how a request ends that no process had."""
        if not isinstance(error, InterruptedTranscription) or kind == "detect_language":
            return Failed(0, error)
        nothing = Transcription(
            text="",
            segments=(),
            language=options.language,
            duration=decoded.n_samples / SAMPLE_RATE,
            task=options.task,
            model=self.config.model,
            timings=Timings(decode=decoded.seconds),
            complete=False,
        )
        if options.on_interrupt == "partial":
            return Done(0, nothing)
        error.partial = nothing
        return Failed(0, error)


def _raise(reason: InterruptedTranscription) -> NoReturn:
    raise reason
