"""`WhisperLibraryAdapter`: a model loaded once, and requests on it, several at a time."""

from __future__ import annotations

import itertools
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import numpy as np

from whisperlib import assets, audio, binding, encoder, models, system, tuning, variants
from whisperlib.audio import Decoded
from whisperlib.audio import Source as AudioSource
from whisperlib.binding import Context, FullArguments, VadContext
from whisperlib.cache import Engine, ResultCache, Wrap, open_store
from whisperlib.errors import (
    AudioError,
    ClosedError,
    EngineError,
    InterruptedTranscription,
    ModelFileError,
    OptionError,
    OutOfMemoryError,
)
from whisperlib.interrupt import Interrupt
from whisperlib.job import Job, TranscriptionStream
from whisperlib.options import SECONDS_PER_AUDIO_CTX, TranscribeOptions, resolve_options
from whisperlib.pcm import SAMPLE_RATE, Samples
from whisperlib.request import Request
from whisperlib.results import LanguageGuess, Segment, Transcription
from whisperlib.scheduler import Scheduler, Turn, Workload
from whisperlib.settings import Isolation, Settings, get_settings
from whisperlib.spare import SpareState

if TYPE_CHECKING:
    from whisperlib.encoder.engine import OpenVinoEncoder

logger = logging.getLogger(__name__)

MAX_THREADS = 512
TUNING_SAMPLE = "seen_020.flac"
TUNING_AUDIO_CTX = 256  # its 2 s fit: a sixth of an encode tells as much of the threads as a whole one
WARM_UP_AUDIO_CTX = 128  # more would make the first request no faster

_T = TypeVar("_T")
_instance_numbers = itertools.count(1)


@dataclass(frozen=True)
class ModelConfig:
    """What an adapter runs: see `WhisperLibraryAdapter.config`. Sizes are bytes, times seconds.

    `process_id` and `resident_bytes` are those of the process that has the model, `isolation` whether that is one of
    its own ("process") or the caller's ("none").
    `passed_over` says which builds of the libraries come before the one that runs but cannot be used here, and why.
    `encoder` is what runs the encoder ("ggml", "openvino bf16"), `encoder_reason` why, `sharing_reason` where
    `threads` and `concurrency` come from.
    """

    model: str
    path: Path
    device: str
    compute_type: str
    encoder: str
    encoder_reason: str
    beam_size: int
    threads: int
    concurrency: int
    sharing_reason: str
    process_id: int
    instance_id: str
    library_directory: Path
    library_version: str
    library_variant: str
    passed_over: tuple[str, ...]
    load_seconds: float
    warm_up_seconds: float
    resident_bytes: int
    isolation: Isolation = "none"


class WhisperLibraryAdapter:
    """Loads a ggml Whisper model once and transcribes with it, from as many threads as like.

    `model` is a name (`"small"`), a file or a directory; None takes `WHISPER_MODEL_SIZE`. `device` is `auto`,
    `cpu` or `cuda`; `compute_type` is `auto` (f16 on a GPU, the fastest accurate file on a CPU) or a weight type
    (`"q5_1"`). `concurrency` requests run at once, each with a fresh state of its own on the one copy of the
    weights and `threads` threads; more wait in the order in which they came. Left out, both are chosen so that
    their product fits what the cgroup allows. `library_dir` names the native libraries' directory.

    A result depends on nothing but its own audio and options. Raises ModelError, LibraryError or OptionError.

        with WhisperLibraryAdapter("small") as whisper:
            print(whisper.transcribe("talk.mp3").text)
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        device: str | None = None,
        compute_type: str | None = None,
        threads: int | None = None,
        concurrency: int | None = None,
        library_dir: str | os.PathLike[str] | None = None,
        flash_attention: bool = True,
        download: bool = False,
        settings: Settings | None = None,
    ) -> None:
        self.settings = settings or get_settings()
        instance_id = f"{os.getpid()}-{next(_instance_numbers)}"
        logger.info("instance %s: creating an adapter for %s", instance_id, model or self.settings.model_size)
        started = time.monotonic()
        wanted_device = device or self.settings.device
        model_file = models.resolve(
            model,
            quantization=compute_type or self.settings.quantization,
            device="cpu" if wanted_device == "cpu" or not binding.ask_driver().available else "cuda",
            download=download,
            settings=self.settings,
        )
        self._model = model_file
        store = open_store(self.settings)
        choice = variants.choose(wanted_device, library_dir, model_file.path.parent)
        threads, concurrency = (
            threads or self.settings.threads or None,
            concurrency or self.settings.concurrency or None,
        )
        _check_sharing(threads, concurrency)
        library = binding.load(choice.directory)
        cores = system.cpu_allowance().cores

        def known_plan(running: encoder.Choice) -> tuning.Plan | None:
            return tuning.known(
                cores,
                tuning.facts(library, model_file, str(running)),
                threads=threads,
                concurrency=concurrency,
                may_measure=choice.device == "cpu" and self.settings.measure_threads,
            )

        # The other encoder is compiled while ggml reads its file: each keeps one core busy.
        with ThreadPoolExecutor(1, thread_name_prefix="whisper-load") as beside:
            loading = beside.submit(
                Context, library, model_file.path, use_gpu=choice.device == "cuda", flash_attention=flash_attention
            )
            running = encoder.choose(
                model_file.path,
                wanted=self.settings.encoder,
                precision=self.settings.encoder_precision,
                device=choice.device,
                takes_encoder=library.takes_encoder,
            )
            plan = known_plan(running)
            # Where that is to be measured, it is compiled for what is measured first.
            running, engine = self._compile(running, plan or tuning.by_cores(cores, tuning.candidates(cores)[0]))
        self._context = loading.result()
        self._context.use_encoder(engine)
        if running.refused:  # then what is remembered for ggml's counts
            logger.warning(
                "the OpenVINO encoder beside %s is not used, and ggml's takes several times as long: %s",
                model_file.path,
                running.reason,
            )
            plan = known_plan(running)
        measured = plan is None
        plan = plan or self._measure(cores, tuning.facts(library, model_file, str(running)), engine)
        self._threads, self._concurrency = plan.threads, plan.concurrency
        build = str(library.build.get("key", f"{choice.directory} {library.version}"))
        facts = (choice.device, str(running), str(flash_attention), choice.variant, build)
        self._cache = ResultCache(store, Engine(model_file.path, facts)) if store else None
        self._spare = SpareState(self._context)
        self._vads: queue.SimpleQueue[VadContext] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._scheduler = Scheduler(
            self._concurrency,
            short_seconds=self.settings.short_audio_seconds,
            name=f"whisper-{instance_id}",
            on_idle=self._tidy_up,
        )
        load_seconds = time.monotonic() - started
        try:
            warm_up_seconds = self._warm_up(plan.seconds[plan.threads] if measured else None)
        except BaseException:
            self.close()
            raise
        self._config = ModelConfig(
            model=model_file.name,
            path=model_file.path,
            device=choice.device,
            compute_type=model_file.quantization,
            encoder=str(running),
            encoder_reason=running.reason,
            beam_size=TranscribeOptions().with_profile(self.settings.profile).beam_size,
            threads=self._threads,
            concurrency=self._concurrency,
            sharing_reason=plan.reason,
            process_id=os.getpid(),
            instance_id=instance_id,
            library_directory=choice.directory,
            library_version=library.version,
            library_variant=choice.variant,
            passed_over=choice.passed_over,
            load_seconds=load_seconds,
            warm_up_seconds=warm_up_seconds,
            resident_bytes=system.resident_bytes(),
        )
        logger.info(
            "instance %s: loaded %s (%s) on %s, encoder %s (%s), with %d × %d threads (%s) in %.2f s, "
            "warmed up in %.2f s, %.0f MB resident",
            instance_id,
            model_file.name,
            model_file.quantization,
            choice.device,
            running,
            running.reason,
            self._concurrency,
            self._threads,
            plan.reason,
            load_seconds,
            warm_up_seconds,
            self._config.resident_bytes / 1e6,
        )

    @property
    def config(self) -> ModelConfig:
        """What this adapter runs."""
        return self._config

    @property
    def cache(self) -> ResultCache | None:
        """The results that are kept; None where `WHISPER_CACHE` is off."""
        return self._cache

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closing.is_set()

    def transcribe(
        self, source: AudioSource | Decoded, options: TranscribeOptions | None = None, **overrides: Any
    ) -> Transcription:
        """Transcribe `source`: a path, a file object, bytes, or a float32 array of shape (n,) at 16 kHz.

        `overrides` are single options by name: `transcribe("a.wav", language="de")`. Raises AudioError for audio that
        cannot be used, OptionError, EngineError; OverloadedError where the wait would be longer than
        `max_wait_seconds`; TranscriptionCancelled or DeadlineExceeded, with the finished part in `partial`, unless
        `on_interrupt="partial"` asks for it as the result.
        """
        return self.start(source, resolve_options(options, overrides)).result()

    def stream(
        self, source: AudioSource | Decoded, options: TranscribeOptions | None = None, **overrides: Any
    ) -> TranscriptionStream:
        """Transcribe as `transcribe` does, giving each segment as soon as it is settled.

        The audio is read, and the request queued, before this returns; a slow reader holds nothing up.
        """
        segments: queue.SimpleQueue[Segment | None] = queue.SimpleQueue()
        return TranscriptionStream(self.start(source, resolve_options(options, overrides), segments.put), segments)

    def detect_language(
        self, source: AudioSource | Decoded, options: TranscribeOptions | None = None, **overrides: Any
    ) -> LanguageGuess:
        """Tell the language of the first 30 s of speech. Raises AudioError where there is no speech."""
        request = self._request(source, resolve_options(options, overrides))
        future = self._submit(request, request.detect_language, request.options.max_wait_seconds)
        return Job(future, request.interrupt, _raise).result()

    def start(
        self,
        source: AudioSource | Decoded,
        options: TranscribeOptions,
        on_segment: Callable[[Segment], None] | None = None,
    ) -> Job[Transcription]:
        """Queue what `transcribe` waits for; `on_segment` is called in an engine thread, which waits for it."""
        return self._transcribe(self._request(source, options, on_segment))

    def workload(self) -> Workload:
        """Tell what runs and waits here, and how long a short request would wait now."""
        return self._scheduler.workload()

    def close(self) -> None:
        """Stop what runs, within one encoder or decoder step, and free the model. Again: nothing happens."""
        self._closing.set()
        if os.getpid() != self._context.library.pid:
            return  # a fork's copy: threads and memory are the parent's
        self._spare.give_up()
        # Queued requests run too: each finds the adapter closing and ends at once with a clear error.
        self._scheduler.close()
        while not self._vads.empty():
            self._vads.get().close()
        self._context.close()
        if self._cache:
            self._cache.close()

    def __enter__(self) -> WhisperLibraryAdapter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _request(
        self,
        source: AudioSource | Decoded,
        options: TranscribeOptions,
        on_segment: Callable[[Segment], None] | None = None,
    ) -> Request:
        options = options.with_profile(self.settings.profile)
        self._check_usable(options)
        longest = self.settings.max_audio_seconds
        decoded = source if isinstance(source, Decoded) else audio.decode(source, max_seconds=longest)
        return Request(
            samples=_cut(decoded.samples, options),
            options=options,
            interrupt=Interrupt(options, self._closing, decoded.started),
            threads=options.threads or self._threads,
            new_state=self._spare.take,
            model=self._model.name,
            duration=len(decoded.samples) / SAMPLE_RATE,
            origin_seconds=options.offset_seconds,
            decode_seconds=decoded.seconds,
            on_segment=on_segment,
        )

    def _check_usable(self, options: TranscribeOptions) -> None:
        self._context.library.check_process()
        if self.closed:
            raise ClosedError("the adapter was closed")
        languages = self._context.languages()
        if options.language is not None and options.language not in languages:
            raise OptionError(
                f"language = {options.language!r}: {self._context.path.name} knows {len(languages)} languages, "
                "not this one"
            )
        if options.task == "translate" and not self._context.is_multilingual:
            raise OptionError(f"task = 'translate': {self._context.path.name} knows English only")
        if options.threads is not None and options.threads > self._threads:
            most = max(self._threads, system.cpu_allowance().cores)
            if options.threads > most:
                raise OptionError(f"threads = {options.threads}: give at most {most}, what this process may use")

    def _transcribe(self, request: Request) -> Job[Transcription]:
        longest_wait = request.options.max_wait_seconds
        if self._cache is None or not request.options.cache:
            return Job(self._submit(request, request.run, longest_wait), request.interrupt, request.interrupted)

        def queue(wrap: Wrap, first: bool) -> Future[Transcription]:
            def run(context: Context, vad: VadContext | None, turn: Turn) -> Transcription:
                return wrap(lambda: request.run(context, vad, turn))

            return self._submit(request, run, longest_wait if first else None)

        future, use = self._cache.start(request, queue)
        return Job(future, request.interrupt, request.interrupted, use)

    def _submit(
        self,
        request: Request,
        run: Callable[[Context, VadContext | None, Turn], _T],
        max_wait_seconds: float | None,
    ) -> Future[_T]:
        def in_engine_thread(turn: Turn) -> _T:
            try:
                with self._vad(request.options) as vad:
                    return run(self._context, vad, turn)
            except OutOfMemoryError:
                self._spare.give_up()
                raise

        return self._scheduler.submit(
            in_engine_thread,
            request.interrupt,
            len(request.samples) / SAMPLE_RATE,
            max_wait_seconds,
            background=request.options.background,
        )

    @contextmanager
    def _vad(self, options: TranscribeOptions) -> Iterator[VadContext | None]:
        """Lend a detector, one per running request; they are kept, as each call clears their memory."""
        if not options.vad:
            yield None
            return
        try:
            vad = self._vads.get_nowait()
        except queue.Empty:
            vad = VadContext(self._context.library, assets.VAD_MODEL)
        try:
            yield vad
        finally:
            self._vads.put(vad)

    def _compile(self, running: encoder.Choice, plan: tuning.Plan) -> tuple[encoder.Choice, OpenVinoEncoder | None]:
        """Compile the chosen encoder; return ggml's, with the reason, where OpenVINO refuses its files."""
        if not running.accelerated:
            return running, None
        try:
            return running, encoder.load(running.accelerated, running.computes_in, plan.threads, plan.concurrency)
        except ModelFileError as error:
            if self.settings.encoder == "openvino":
                raise
            return encoder.Choice("ggml", str(error), refused=True), None

    def _measure(self, cores: int, facts: tuple[str, ...], engine: OpenVinoEncoder | None) -> tuning.Plan:
        """Share the cores by transcribing a bundled clip; that warms up what it runs, and tests it, too.

        Raises EngineError where the model computes no numbers.
        """
        samples = audio.load(assets.SAMPLES / TUNING_SAMPLE)

        def run(n_threads: int, n_states: int) -> float:
            if engine:
                # OpenVINO fixes the threads when it compiles: there is no cheaper way to the time with others.
                engine.share(n_threads, n_states)
            arguments = FullArguments(
                n_threads=n_threads,
                language="en",
                beam_size=1,
                best_of=1,
                temperature_inc=0.0,
                audio_ctx=TUNING_AUDIO_CTX,
            )
            with self._context.new_state() as state:
                started = time.monotonic()
                state.full(arguments, samples)
                seconds = time.monotonic() - started
                # Whatever words a model finds, the likeliest token is never impossible; after a NaN each of them is.
                if not all(token.probability > 0.0 for segment in state.segments() for token in segment.tokens):
                    raise EngineError(
                        f"{self._model.path} computes no numbers on a bundled clip: check it with "
                        "`whisperlib models verify`, and the libraries with `whisperlib selftest`"
                    )
            return seconds

        try:
            plan = tuning.measure(cores, facts, run)
            if engine:
                engine.share(plan.threads, plan.concurrency)
        except BaseException:
            self._context.close()
            raise
        return plan

    def _tidy_up(self) -> None:
        """Leave an idle engine as the next request wants it; called in an engine thread, behind the last result.

        While requests run there is no spare, so that it takes no memory beyond that of the states that run.
        """
        self._spare.prepare()
        binding.release_unused()

    def _warm_up(self, measured_seconds: float | None) -> float:
        """Run detector, encoder and decoder on a second of silence, twice; return the seconds it took.

        The encoder runs over a part of a window: that touches all weights, and the first request pays for no more.
        Where the measurement of the threads has just run encoder and decoder, for `measured_seconds`, only the
        detector is left.
        """
        started = time.monotonic()
        silence = np.zeros(SAMPLE_RATE, np.float32)
        audio_ctx = min(WARM_UP_AUDIO_CTX, self._context.n_audio_ctx)
        arguments = FullArguments(
            n_threads=self._threads,
            language="en",
            beam_size=1,
            best_of=1,
            temperature_inc=0.0,
            audio_ctx=audio_ctx,
            no_timestamps=True,
            max_tokens=1,
        )

        def detect() -> None:
            with self._vad(TranscribeOptions()) as vad:
                if vad:
                    vad.speech_probabilities(silence)

        def run() -> float:
            began = time.monotonic()
            detect()
            with self._context.new_state() as state:
                state.full(arguments, silence)
            return time.monotonic() - began

        interrupt = Interrupt(TranscribeOptions(), self._closing, started)
        if measured_seconds is not None:
            self._scheduler.submit(lambda _turn: detect(), interrupt, audio_seconds=0.0).result()
            self._scheduler.set_real_time_factor(measured_seconds, TUNING_AUDIO_CTX * SECONDS_PER_AUDIO_CTX)
            return time.monotonic() - started
        # What is done once only is in the first run, and would tell nothing of requests.
        work = self._scheduler.submit(lambda _turn: (run(), run()), interrupt, audio_seconds=0.0)
        seconds = work.result()[-1]
        # That was little more than the encoder; the text takes about as long again.
        self._scheduler.set_real_time_factor(2 * seconds, audio_ctx * SECONDS_PER_AUDIO_CTX)
        return time.monotonic() - started


def _raise(reason: InterruptedTranscription) -> NoReturn:
    raise reason


def _cut(samples: Samples, options: TranscribeOptions) -> Samples:
    """Take what `offset_seconds` and `duration_seconds` ask for, without a copy."""
    first = round(options.offset_seconds * SAMPLE_RATE)
    if first >= len(samples):
        raise AudioError(
            f"offset_seconds = {options.offset_seconds:g} is past the end of the audio, "
            f"{len(samples) / SAMPLE_RATE:.2f} s"
        )
    if options.duration_seconds is None:
        return samples[first:]
    return samples[first : first + max(1, round(options.duration_seconds * SAMPLE_RATE))]


def _check_sharing(threads: int | None, concurrency: int | None) -> None:
    for name, value, most in (("threads", threads, MAX_THREADS), ("concurrency", concurrency, tuning.MAX_STATES)):
        if value is not None and not 1 <= value <= most:
            raise OptionError(f"{name} = {value}: give 1 to {most}")
    allowance = system.cpu_allowance()
    if (threads or 1) * (concurrency or 1) > allowance.cores:
        logger.warning(
            "%d states of %d threads want more than the %s this process may use: they will slow each other down",
            concurrency or 1,
            threads or 1,
            allowance,
        )
