"""Owners of the C objects: a model's context, the state of one request, a voice activity detector.

Each is closed once, by `close`, `with` or the finaliser, whichever comes first; closing again does nothing.
A closed handle raises ClosedError before C is reached, and nothing is freed while another thread is inside.
"""

from __future__ import annotations

import ctypes as c
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from whisperlib.binding import log, status
from whisperlib.binding.external import (
    CrossAttention,
    Encoder,
    EncoderCallback,
    EncoderShape,
    ExternalEncoder,
    cross_attention,
)
from whisperlib.binding.library import Library
from whisperlib.binding.structs import (
    AbortCallback,
    EncoderBeginCallback,
    FullParams,
    NewSegmentCallback,
    ProgressCallback,
)
from whisperlib.errors import (
    ClosedError,
    EngineError,
    LibraryLoadError,
    ModelFileError,
    OptionError,
    OutOfMemoryError,
)
from whisperlib.pcm import SAMPLE_RATE, Samples

logger = logging.getLogger(__name__)

Self = TypeVar("Self", bound="Handle")

MIN_SAMPLES = SAMPLE_RATE  # shorter audio makes whisper.cpp before 1.9.3 read out of bounds
MAX_SAMPLES = 2**31 - 1 - 30 * SAMPLE_RATE  # an int, with the 30 s that the log-mel pads
MAX_DECODERS = 8  # WHISPER_MAX_DECODERS
_VAD_BLOCK_SAMPLES = 60 * SAMPLE_RATE  # whole frames: what is left over is padded with zeros
_GREEDY, _BEAM_SEARCH = 0, 1


class Handle:
    """Base of all owners: knows its pointer, who is inside, and how to free it."""

    noun = "handle"

    def __init__(self, library: Library, pointer: int, free: Callable[[int], None]) -> None:
        self.library = library
        self._pointer = pointer
        self._idle = threading.Condition()
        self._users: list[int] = []
        self._closed = False
        # The finaliser holds no reference to this object, only what it takes to free the C one.
        self._finalizer = weakref.finalize(self, _free, free, pointer, library.pid)

    @contextmanager
    def _use(self) -> Iterator[int]:
        """Give the pointer, and keep it from being freed until the block ends."""
        self.library.check_process()
        with self._idle:
            # A call that is inside already may go on: its callbacks read what it has settled.
            if self._closed and threading.get_ident() not in self._users:
                raise ClosedError(f"the {self.noun} was closed")
            self._users.append(threading.get_ident())
        try:
            yield self._pointer
        finally:
            with self._idle:
                self._users.remove(threading.get_ident())
                self._idle.notify_all()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """Free the C object, after the calls that are inside it have ended. Again: nothing happens."""
        with self._idle:
            if threading.get_ident() in self._users:
                raise EngineError(f"the {self.noun} cannot be closed from its own callback")
            self._closed = True
            self._idle.wait_for(lambda: not self._users)
        self._finalizer()

    def _disown(self) -> None:
        """Forget the C object without freeing it: the library has done so."""
        self._closed = True
        self._finalizer.detach()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _free(free: Callable[[int], None], pointer: int, pid: int) -> None:
    # The copy that a forked child holds is the parent's to free.
    if os.getpid() == pid:
        free(pointer)


@dataclass(frozen=True, slots=True)
class RawToken:
    """One text token: vocabulary id, its bytes (perhaps part of a character), probability, log probability.

    `start` and `end` are seconds, and mean something only if token timestamps were asked for.
    """

    id: int
    text: bytes
    probability: float
    logprob: float
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class RawSegment:
    """One segment as the library holds it. Times are seconds of the samples that were given to `full`."""

    start: float
    end: float
    text: bytes
    no_speech_prob: float
    temperature: float | None
    tokens: tuple[RawToken, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FullArguments:
    """What one `whisper_full` is to do; the names are whisper.h's. Checked before C is reached."""

    n_threads: int
    language: str | None  # None: detected within the first encode
    translate: bool = False
    beam_size: int = 5
    best_of: int = 5
    temperature: float = 0.0
    temperature_inc: float = 0.2
    entropy_thold: float = 2.4
    logprob_thold: float = -1.0
    no_speech_thold: float = 0.6
    suppress_nst: bool = False
    n_max_text_ctx: int = 16384
    initial_prompt: str | None = None
    carry_initial_prompt: bool = False
    token_timestamps: bool = False
    audio_ctx: int = 0
    no_timestamps: bool = False
    max_tokens: int = 0  # of a segment; 0: as many as there are

    def __post_init__(self) -> None:
        if not 1 <= self.n_threads <= 512:
            raise OptionError(f"n_threads = {self.n_threads}: give 1 to 512")
        for name in ("beam_size", "best_of"):
            if not 1 <= getattr(self, name) <= MAX_DECODERS:
                raise OptionError(f"{name} = {getattr(self, name)}: give 1 to {MAX_DECODERS}")
        # Above 1 there is no temperature to try and whisper_full never ends; tiny steps exhaust memory.
        if not 0.0 <= self.temperature <= 1.0:
            raise OptionError(f"temperature = {self.temperature}: give 0 to 1")
        if self.temperature_inc != 0.0 and not 0.05 <= self.temperature_inc <= 1.0:
            raise OptionError(f"temperature_inc = {self.temperature_inc}: give 0, or 0.05 to 1")
        if self.n_max_text_ctx < 0 or self.audio_ctx < 0 or self.max_tokens < 0:
            raise OptionError("n_max_text_ctx, audio_ctx and max_tokens cannot be negative")

    def to_struct(self, library: Library) -> FullParams:
        """Fill the library's own defaults with these values."""
        strategy = _BEAM_SEARCH if self.beam_size > 1 else _GREEDY
        params: FullParams = library.c.whisper_full_default_params(strategy)
        params.n_threads = self.n_threads
        params.n_max_text_ctx = self.n_max_text_ctx
        params.translate = self.translate
        params.language = self.language.encode() if self.language else None
        params.detect_language = False
        params.print_progress = False
        params.print_timestamps = False
        params.token_timestamps = self.token_timestamps
        params.audio_ctx = self.audio_ctx
        params.no_timestamps = self.no_timestamps
        params.max_tokens = self.max_tokens
        params.initial_prompt = self.initial_prompt.encode() if self.initial_prompt else None
        params.carry_initial_prompt = self.carry_initial_prompt
        params.temperature = self.temperature
        params.temperature_inc = self.temperature_inc
        params.entropy_thold = self.entropy_thold
        params.logprob_thold = self.logprob_thold
        params.no_speech_thold = self.no_speech_thold
        params.suppress_nst = self.suppress_nst
        params.greedy.best_of = self.best_of
        params.beam_search.beam_size = self.beam_size
        params.vad = False  # whisper_full_with_state ignores it
        return params


@dataclass(frozen=True, slots=True, kw_only=True)
class Callbacks:
    """What `State.full` calls back, in its own thread, while it runs.

    `segments` gets those settled since the last call, `progress` the fraction done (0 to 1); `window` is called before
    the encoder runs over each window, and may wait; `stop` is asked after every encoder and decoder step. An exception
    in any of them stops the run and is raised by `full`.
    """

    segments: Callable[[list[RawSegment]], None] | None = None
    progress: Callable[[float], None] | None = None
    window: Callable[[], None] | None = None
    stop: Callable[[], bool] | None = None


class Context(Handle):
    """A loaded model: weights and vocabulary, shared by all its states. Safe to use from many threads.

    Raises ModelFileError where the library refuses the file. Check the file first (`models.check_header`):
    before 1.9.3 whisper.cpp overflows its stack on a malformed one.

    `flash_attention` is ggml's encoder's, `decoder_flash_attention` the decoder's; None takes it on a GPU only: on a
    CPU it helps the encoder and slows the decoder.
    """

    noun = "model context"

    def __init__(
        self,
        library: Library,
        path: Path,
        *,
        use_gpu: bool = False,
        flash_attention: bool = True,
        decoder_flash_attention: bool | None = None,
    ) -> None:
        library.check_process()
        params = library.c.whisper_context_default_params()
        params.use_gpu = use_gpu
        params.flash_attn = flash_attention
        log.forget_errors()
        try:
            pointer = library.c.whisper_init_from_file_with_params_no_state(os.fsencode(path), params)
        except ModelFileError as error:
            raise ModelFileError(f"{path}: {error}") from None
        super().__init__(library, pointer, library.c.whisper_free)
        self.path = path
        wanted = flash_attention and use_gpu if decoder_flash_attention is None else decoder_flash_attention
        self._decoder_flash_attention = wanted
        self._encoder: Encoder | None = None
        self._children: weakref.WeakSet[State] = weakref.WeakSet()
        c_lib = library.c
        self.is_multilingual = bool(c_lib.whisper_is_multilingual(pointer))
        self.n_vocab = int(c_lib.whisper_model_n_vocab(pointer))
        self.n_audio_ctx = int(c_lib.whisper_model_n_audio_ctx(pointer))
        self.n_text_ctx = int(c_lib.whisper_model_n_text_ctx(pointer))
        self.end_of_text = int(c_lib.whisper_token_eot(pointer))
        self.encoder_shape = EncoderShape(
            n_mels=int(c_lib.whisper_model_n_mels(pointer)),
            n_text_layer=int(c_lib.whisper_model_n_text_layer(pointer)),
            n_text_state=int(c_lib.whisper_model_n_text_state(pointer)),
        )
        # As Vocab::num_languages in whisper.cpp: large-v3 added Cantonese; before, its token means "translate".
        self.n_languages = self.n_vocab - 51765 - int(self.is_multilingual)

    def languages(self) -> tuple[str, ...]:
        """Codes of the languages that this model has tokens for."""
        if not self.is_multilingual:
            return ("en",)
        return tuple(self.library.c.whisper_lang_str(i).decode() for i in range(self.n_languages))

    def use_encoder(self, encoder: Encoder | None) -> None:
        """Have the states that are made from now on call `encoder` in place of ggml's; None: ggml's again.

        It is called with each window, in the thread that runs the state; what it raises, the run raises. Raises
        LibraryLoadError where the library cannot do that.
        """
        if encoder and not self.library.takes_encoder:
            raise LibraryLoadError(f"{self.library.directory} takes no encoder: run `make native`")
        self._encoder = encoder

    def new_state(self) -> State:
        """Allocate a fresh state (KV caches, buffers). Raises OutOfMemoryError."""
        external = ExternalEncoder(self._encoder, self.encoder_shape) if self._encoder else None
        c_lib = self.library.c
        with self._use() as pointer:
            log.forget_errors()
            if not self.library.takes_encoder:
                state = c_lib.whisper_init_state(pointer)
            else:
                flash_attention = self._decoder_flash_attention and not external
                callback = external.callback if external else EncoderCallback()
                state = c_lib.whisper_init_state_with_encoder(pointer, flash_attention, callback, None)
            handle = State(self, state, external)
            self._children.add(handle)
            return handle

    def token_count(self, text: str) -> int:
        """Count the tokens of `text`. Raises OptionError above 2,000 characters (see options)."""
        if len(text) > 2000:
            raise OptionError(f"text of {len(text)} characters: give at most 2000")
        with self._use() as pointer:
            return int(self.library.c.whisper_token_count(pointer, text.encode()))

    def close(self) -> None:
        """Free the states that are left, then the weights; waits for calls inside them."""
        for state in list(self._children):
            state.close()
        super().close()


class State(Handle):
    """The working memory of one request. One thread at a time; a second one waits."""

    noun = "state"

    def __init__(self, context: Context, pointer: int, external: ExternalEncoder | None = None) -> None:
        super().__init__(context.library, pointer, context.library.c.whisper_free_state)
        self._external = external  # C holds a raw pointer to its callback
        self.context = context  # keeps the context alive: it must outlive its states
        self._one_thread = threading.RLock()
        self._running = False

    def full(self, arguments: FullArguments, samples: Samples, callbacks: Callbacks | None = None) -> None:
        """Transcribe `samples` (float32, shape (n,), 16 kHz, finite, 1 s at least); read `segments` afterwards.

        Raises OptionError for arguments that whisper_full cannot take, EngineError with its `code` where it
        fails, OutOfMemoryError where memory ends (after -7 the library has freed the state: this handle is closed),
        and whatever a callback raised.
        """
        c_lib = self.library.c
        if arguments.language is not None and arguments.language not in self.context.languages():
            raise OptionError(f"language {arguments.language!r} is unknown to {self.context.path.name}")
        if arguments.audio_ctx > self.context.n_audio_ctx:
            raise OptionError(f"audio_ctx = {arguments.audio_ctx}: the model has {self.context.n_audio_ctx}")
        pointer_to_samples = _samples_pointer(samples)
        params = arguments.to_struct(self.library)
        with self.context._use() as context, self._exclusive() as state:
            if self._running:
                raise EngineError("a state cannot run twice at once: full was called from its own callback")
            kept = _connect(params, self, callbacks or Callbacks())
            log.forget_errors()
            self._running = True
            try:
                c_lib.whisper_full_with_state(context, state, params, pointer_to_samples, len(samples))
            except OutOfMemoryError as error:
                if error.code == status.OUT_OF_MEMORY:
                    self._disown()  # whisper_full has freed the state
                raise
            except EngineError as error:
                raise kept.error or self._encoder_error() or error from None
            finally:
                self._running = False
                kept.objects.clear()  # which refer to it, and to the caller's request with its audio
            if kept.error is not None:
                raise kept.error

    def detect_language(self, samples: Samples, n_threads: int) -> dict[str, float]:
        """Return the probability of every language of the model, from the first 30 s of `samples`.

        Takes samples as `full` does, and uses the state up: take a fresh one for `full`.
        """
        c_lib = self.library.c
        pointer_to_samples = _samples_pointer(samples)
        codes = self.context.languages()
        n_probabilities = c_lib.whisper_lang_max_id() + 1
        probabilities = (c.c_float * n_probabilities)()
        with self.context._use() as context, self._exclusive() as state:
            log.forget_errors()
            c_lib.whisper_pcm_to_mel_with_state(context, state, pointer_to_samples, len(samples), n_threads)
            try:
                c_lib.whisper_lang_auto_detect_with_state(context, state, 0, n_threads, probabilities)
            except EngineError as error:
                raise self._encoder_error() or error from None
        return {code: float(probabilities[i]) for i, code in enumerate(codes)}

    def encode(self, samples: Samples, n_threads: int) -> CrossAttention:
        """Encode the first 30 s of `samples` and return a copy of what the decoder would attend to.

        Takes samples as `full` does. Raises EngineError on a GPU and with flash attention in the decoder.
        """
        c_lib = self.library.c
        pointer_to_samples = _samples_pointer(samples)
        keys, values = c.c_void_p(), c.c_void_p()
        with self.context._use() as context, self._exclusive() as state:
            log.forget_errors()
            c_lib.whisper_pcm_to_mel_with_state(context, state, pointer_to_samples, len(samples), n_threads)
            try:
                c_lib.whisper_encode_with_state(context, state, 0, n_threads)
            except EngineError as error:
                raise self._encoder_error() or error from None
            c_lib.whisper_get_cross_kv_from_state(state, c.byref(keys), c.byref(values))
            found = cross_attention(
                keys.value or 0, values.value or 0, self.context.encoder_shape, self.context.n_audio_ctx
            )
            return CrossAttention(found.keys.copy(), found.values.copy())

    def _encoder_error(self) -> BaseException | None:
        return self._external.take_error() if self._external else None

    @property
    def language(self) -> str | None:
        """Code of the language of the last run."""
        with self._exclusive() as state:
            name = self.library.c.whisper_lang_str(self.library.c.whisper_full_lang_id_from_state(state))
            return name.decode() if name else None

    def segments(self, start: int = 0) -> list[RawSegment]:
        """Read the settled segments from index `start` on. A callback may call it while `full` runs."""
        with self._exclusive() as state:
            n = self.library.c.whisper_full_n_segments_from_state(state)
            return [self._segment(state, i) for i in range(start, n)]

    def _segment(self, state: int, index: int) -> RawSegment:
        c_lib = self.library.c
        temperature = getattr(c_lib, "whisper_full_get_segment_temperature_from_state", None)
        return RawSegment(
            start=_seconds(c_lib.whisper_full_get_segment_t0_from_state(state, index)),
            end=_seconds(c_lib.whisper_full_get_segment_t1_from_state(state, index)),
            text=c_lib.whisper_full_get_segment_text_from_state(state, index) or b"",
            no_speech_prob=c_lib.whisper_full_get_segment_no_speech_prob_from_state(state, index),
            temperature=round(temperature(state, index), 4) if temperature else None,
            tokens=tuple(self._text_tokens(state, index)),
        )

    def _text_tokens(self, state: int, index: int) -> Iterator[RawToken]:
        c_lib = self.library.c
        with self.context._use() as context:
            for i in range(c_lib.whisper_full_n_tokens_from_state(state, index)):
                data = c_lib.whisper_full_get_token_data_from_state(state, index, i)
                if data.id < self.context.end_of_text:
                    yield RawToken(
                        id=data.id,
                        text=c_lib.whisper_token_to_str(context, data.id) or b"",
                        probability=data.p,
                        logprob=data.plog,
                        start=_seconds(data.t0),
                        end=_seconds(data.t1),
                    )

    @contextmanager
    def _exclusive(self) -> Iterator[int]:
        with self._use() as pointer, self._one_thread:
            yield pointer


class VadContext(Handle):
    """A loaded voice activity detector (Silero). One thread at a time; a second one waits.

    Its memory of what it heard is cleared at the start of every call, so one may serve many requests.
    """

    noun = "VAD context"
    window_samples = 512  # Silero's frame at 16 kHz: 32 ms

    def __init__(self, library: Library, path: Path, *, n_threads: int = 1) -> None:
        library.check_process()
        params = library.c.whisper_vad_default_context_params()
        params.n_threads = n_threads
        params.use_gpu = False
        log.forget_errors()
        try:
            pointer = library.c.whisper_vad_init_from_file_with_params(os.fsencode(path), params)
        except ModelFileError as error:
            raise ModelFileError(f"{path}: {error}") from None
        super().__init__(library, pointer, library.c.whisper_vad_free)
        self._one_thread = threading.Lock()

    def speech_probabilities(self, samples: Samples, check: Callable[[], object] = lambda: None) -> Samples:
        """Return the speech probability of every 32 ms frame: float32, shape (ceil(n / 512),), 0 to 1.

        `samples`: float32, shape (n,), 16 kHz mono, n ≥ 1. `check` is called after every minute of them; what it
        raises ends the call.
        """
        _samples_pointer(samples, minimum=1)
        c_lib = self.library.c
        step = _VAD_BLOCK_SAMPLES if self.library.keeps_listening else len(samples)
        found: list[Samples] = []
        with self._use() as context, self._one_thread:
            log.forget_errors()
            for start in range(0, len(samples), step):
                block = samples[start : start + step]
                detect = c_lib.whisper_vad_detect_speech_no_reset if start else c_lib.whisper_vad_detect_speech
                detect(context, _pointer_to(block), len(block))
                n = c_lib.whisper_vad_n_probs(context)
                found.append(np.ctypeslib.as_array(c_lib.whisper_vad_probs(context), shape=(n,)).copy())
                check()
        return np.concatenate(found)


class _Kept:
    """Callback objects and the first exception of a run. C holds raw pointers to the former."""

    def __init__(self) -> None:
        self.objects: list[Any] = []
        self.error: BaseException | None = None


def _connect(params: FullParams, state: State, callbacks: Callbacks) -> _Kept:
    kept = _Kept()

    def guarded(function: Callable[..., Any], on_error: Any) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if kept.error is not None:
                return on_error
            try:
                return function(*arguments)
            except BaseException as error:  # cannot cross C: full re-raises it
                kept.error = error
                return on_error

        return call

    seen = 0

    def on_segments(_context: int, _state: int, _n_new: int, _data: int) -> None:
        nonlocal seen
        new = state.segments(seen)
        seen += len(new)
        if new and callbacks.segments:
            callbacks.segments(new)

    def on_progress(_context: int, _state: int, percent: int, _data: int) -> None:
        if callbacks.progress:
            callbacks.progress(min(max(percent / 100, 0.0), 1.0))

    stop = guarded(lambda *_: _must_stop(callbacks), True)
    params.new_segment_callback = NewSegmentCallback(guarded(on_segments, None))
    params.progress_callback = ProgressCallback(guarded(on_progress, None))
    params.abort_callback = AbortCallback(stop)
    params.encoder_begin_callback = EncoderBeginCallback(guarded(lambda *_: _may_begin_window(callbacks), False))
    kept.objects = [
        params.new_segment_callback,
        params.progress_callback,
        params.abort_callback,
        params.encoder_begin_callback,
    ]
    return kept


def _may_begin_window(callbacks: Callbacks) -> bool:
    if callbacks.window and not _must_stop(callbacks):
        callbacks.window()
    return not _must_stop(callbacks)


def _must_stop(callbacks: Callbacks) -> bool:
    if not (callbacks.stop and callbacks.stop()):
        return False
    log.expect_stop()
    return True


def _samples_pointer(samples: Samples, minimum: int = MIN_SAMPLES) -> Any:
    if not isinstance(samples, np.ndarray) or samples.dtype != np.float32 or samples.ndim != 1:
        raise OptionError("samples should be a float32 array of shape (n,)")
    if not samples.flags.c_contiguous or not samples.flags.aligned:
        raise OptionError("samples should be contiguous in memory: pass numpy.ascontiguousarray(samples)")
    if not minimum <= len(samples) <= MAX_SAMPLES:
        raise OptionError(f"{len(samples)} samples: give {minimum} to {MAX_SAMPLES}")
    # One pass without a copy: a sum is finite only if all its terms are.
    if not np.isfinite(np.add.reduce(samples, dtype=np.float64)):
        raise OptionError("samples should be finite numbers of ordinary size")
    return _pointer_to(samples)


def _pointer_to(samples: Samples) -> Any:
    # numpy's data_as makes a cycle of references, in which the samples stay until the garbage collector comes by.
    return c.pointer(c.c_float.from_address(samples.ctypes.data))


def _seconds(centiseconds: int) -> float:
    return centiseconds / 100
