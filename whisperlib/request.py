"""One request's way through the engine: find speech, pack it, transcribe on a fresh state, map times back.

Speech is transcribed in one chunk, or, with `chunking="parallel"`, in chunks of at most 30 s that know nothing of each
other. The request's own turn runs them in their order, and helpers take some off it where slots are free. What is
settled is given out in order: the segments of a later chunk wait until the earlier ones have ended.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from whisperlib import windows, words
from whisperlib.binding import Callbacks, Context, FullArguments, RawSegment, State, VadContext
from whisperlib.errors import (
    AudioError,
    EngineError,
    InterruptedTranscription,
    OptionError,
)
from whisperlib.interrupt import Interrupt
from whisperlib.options import AUDIO_CTX_STEP, MAX_AUDIO_CTX, SECONDS_PER_AUDIO_CTX, TranscribeOptions
from whisperlib.pcm import SAMPLE_RATE, Samples
from whisperlib.results import LanguageGuess, Segment, Timings, Transcription, join
from whisperlib.scheduler import WINDOW_SECONDS, Turn
from whisperlib.speech import SpeechRegion, Timeline, find_regions, pack

MIN_SAMPLES = SAMPLE_RATE  # whisper.cpp before 1.9.3 reads out of bounds on shorter audio
FIT_MARGIN = 128  # encoder positions behind the speech, as users of whisper.cpp do: in less, models repeat themselves
MAX_TEXT_CTX = 16384  # whisper_full's own default: as much of the text so far as the model takes


class _Chunk:
    """A part of the speech, and how far the state is that transcribes it: `fraction` is 0 to 1."""

    def __init__(self, regions: windows.Window) -> None:
        self.timeline = Timeline(regions)
        self.settled: list[RawSegment] = []  # not given out yet
        self.fraction = 0.0
        self.windows = 0
        self.windows_with_text: set[int] = set()
        self.ended = False


@dataclass
class Request:
    """One transcription. `samples`: float32, shape (n,), 16 kHz; what the caller handed in, after its offset.

    `origin_seconds` is where they begin on the caller's timeline, `duration` the length of the whole input;
    `new_state` gives fresh states.
    `on_segment` and the options' `progress` are called in threads of the engine, one call at a time.
    """

    samples: Samples
    options: TranscribeOptions
    interrupt: Interrupt
    threads: int
    new_state: Callable[[], State]
    model: str
    duration: float
    origin_seconds: float = 0.0
    decode_seconds: float = 0.0
    on_segment: Callable[[Segment], None] | None = None
    submitted: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._segments: list[Segment] = []
        self._language = self.options.language
        self._times = {"decode": self.decode_seconds}
        self._lock = threading.Lock()  # of the chunks and of what is given out; callers' callbacks run under it
        self._chunks: list[_Chunk] = []
        self._n_begun = 0
        self._n_helpers_wanted = 0
        self._n_given_out = 0  # of the chunks, whole ones
        self._error: BaseException | None = None

    def run(self, context: Context, vad: VadContext | None, turn: Turn) -> Transcription:
        """Transcribe; called once, in a thread of the engine."""
        self._turn = turn
        self._times["queue"] = time.monotonic() - self.submitted
        try:
            self.interrupt.check()
            self._transcribe(context, vad)
        except InterruptedTranscription as reason:
            return self.interrupted(reason)
        finally:
            del self._turn  # it has this object, too: the audio would stay until the garbage collector comes by
        if self.options.progress:
            self.options.progress(1.0)
        return self._result(complete=True)

    def interrupted(self, reason: InterruptedTranscription) -> Transcription:
        """Return what is finished, or raise `reason` with it, as the options ask."""
        partial = self._result(complete=False)
        if self.options.on_interrupt == "partial":
            return partial
        reason.partial = partial
        raise reason

    def detect_language(self, context: Context, vad: VadContext | None, turn: Turn) -> LanguageGuess:
        """Tell the language of the first 30 s of speech; called once, in a thread of the engine."""
        self.interrupt.check()
        regions, _ = self._find_speech(vad)
        if not regions:
            raise AudioError("there is no speech in the audio to tell the language of")
        samples, _ = pack(self.samples, regions)
        with self.new_state() as state:
            probabilities = state.detect_language(_at_least_a_second(samples), self.threads)
        language = max(probabilities, key=probabilities.__getitem__)
        return LanguageGuess(language, probabilities[language], probabilities)

    def _transcribe(self, context: Context, vad: VadContext | None) -> None:
        self._chunks = [_Chunk(regions) for regions in self._plan(vad)]
        if not self._chunks:
            return
        self._n_helpers_wanted = len(self._chunks) - 1
        if not context.is_multilingual:
            self._language = "en"
        for chunk in self._chunks:
            self._audio_ctx(chunk, context)  # raises where one does not fit
        started = time.monotonic()
        try:
            self._run_chunks(context)
        finally:
            paused = self._turn.paused_seconds
            self._times["queue"] += paused
            self._times["inference"] = time.monotonic() - started - paused

    def _find_speech(self, vad: VadContext | None) -> tuple[tuple[SpeechRegion, ...], Samples | None]:
        """Return the regions, and the speech probabilities that they were found in."""
        if vad is None:
            return (SpeechRegion(0, len(self.samples)),), None
        started = time.monotonic()
        probabilities = vad.speech_probabilities(self.samples, self.interrupt.check)
        regions = find_regions(probabilities, len(self.samples), vad.window_samples, self.options.vad_options)
        self._times["vad"] = time.monotonic() - started
        self.interrupt.check()
        return regions, probabilities

    def _plan(self, vad: VadContext | None) -> tuple[windows.Window, ...]:
        """Find speech, and share it out to chunks."""
        regions, probabilities = self._find_speech(vad)
        if vad is None or probabilities is None:
            return (regions,)
        seconds = sum(region.end - region.start for region in regions) / SAMPLE_RATE
        if self.options.chunking == "sequential" or not regions:
            self._turn.set_audio_seconds(seconds)
            return (regions,) if regions else ()
        longest = round((self.options.audio_ctx or MAX_AUDIO_CTX) * SECONDS_PER_AUDIO_CTX * SAMPLE_RATE)
        chunks = windows.cut(regions, probabilities, vad.window_samples, self.options.vad_options, longest)
        self._turn.set_audio_seconds(max(seconds, len(chunks) * WINDOW_SECONDS))
        return chunks

    def _audio_ctx(self, chunk: _Chunk, context: Context) -> int:
        """Return how many positions the encoder runs over; 0: all. Raises OptionError where the audio does not fit."""
        seconds = chunk.timeline.n_packed / SAMPLE_RATE
        audio_ctx = self.options.audio_ctx
        if audio_ctx and seconds > audio_ctx * SECONDS_PER_AUDIO_CTX:
            raise OptionError(
                f"audio_ctx = {audio_ctx} covers {audio_ctx * SECONDS_PER_AUDIO_CTX:g} s and there are "
                f"{seconds:.1f} s to transcribe: the rest would be skipped"
            )
        if audio_ctx or not self.options.fit_audio_ctx:
            return audio_ctx
        positions = seconds / SECONDS_PER_AUDIO_CTX + FIT_MARGIN
        fitted = math.ceil(positions / AUDIO_CTX_STEP) * AUDIO_CTX_STEP
        return fitted if fitted < context.n_audio_ctx else 0

    def _run_chunks(self, context: Context) -> None:
        """Run the chunks one after another, and have helpers run some of them beside."""
        try:
            self._work(context, self._turn)
        finally:
            self._turn.dismiss_helpers()
        try:
            if self._error:
                raise self._error
        finally:
            self._error = None  # its traceback has this object

    def _work(self, context: Context, turn: Turn, most: int | None = None) -> None:
        """Run chunks, at most `most`, as long as there are any; the first error of all is kept, and stops all."""
        for _ in itertools.count() if most is None else range(most):
            with self._lock:
                if self._error or self._n_begun == len(self._chunks):
                    return
                chunk = self._chunks[self._n_begun]
                self._n_begun += 1
            try:
                self._run_chunk(chunk, context, turn)
            except BaseException as error:
                self._error = self._error or error
                return

    def _run_chunk(self, chunk: _Chunk, context: Context, turn: Turn) -> None:
        samples = _at_least_a_second(pack(self.samples, chunk.timeline.regions)[0])
        try:
            # A state is used once: KV rows, random numbers and buffers of an earlier request change the text.
            with self.new_state() as state:
                if self._language is not None:
                    self._add_helpers(context)
                self._run_state(state, chunk, context, samples, turn)
        except EngineError:
            # An interrupted step is reported as a failed one.
            self.interrupt.check()
            raise

    def _add_helpers(self, context: Context) -> None:
        """Let the other chunks begin, once, now that the language is known."""
        with self._lock:
            wanted, self._n_helpers_wanted = self._n_helpers_wanted, 0
        for _ in range(wanted):
            self._turn.add_helper(lambda turn: self._work(context, turn, most=1))

    def _run_state(self, state: State, chunk: _Chunk, context: Context, samples: Samples, turn: Turn) -> None:
        def begin_window() -> None:
            chunk.windows += 1
            if self._language is None:
                self._language = state.language  # detected within the first encode, which is over
            self._add_helpers(context)
            turn.window()

        state.full(
            self._arguments(context, self._audio_ctx(chunk, context)),
            samples,
            Callbacks(
                segments=lambda raw: self._settle(chunk, raw),
                progress=(lambda fraction: self._report(chunk, fraction)) if self.options.progress else None,
                window=begin_window,
                stop=lambda: self._error is not None or self.interrupt.reason() is not None,
            ),
        )
        # A false encoder_begin ends the run without an error.
        self.interrupt.check()
        if not self._error:
            self._end(chunk)

    def _arguments(self, context: Context, audio_ctx: int) -> FullArguments:
        options = self.options
        carry, n_max_text_ctx = options.carry_initial_prompt, MAX_TEXT_CTX
        if not options.condition_on_previous_text:
            # whisper.cpp has one budget for the prompt and the text so far: give the prompt all of it.
            carry = options.initial_prompt is not None
            n_max_text_ctx = context.token_count(options.initial_prompt) + 1 if options.initial_prompt else 0
        return FullArguments(
            n_threads=self.threads,
            language=self._language,
            translate=options.task == "translate",
            beam_size=options.beam_size,
            best_of=options.best_of,
            temperature=options.temperature,
            temperature_inc=options.temperature_increment,
            entropy_thold=options.entropy_threshold,
            logprob_thold=options.logprob_threshold,
            no_speech_thold=options.no_speech_threshold,
            suppress_nst=options.suppress_non_speech,
            n_max_text_ctx=n_max_text_ctx,
            initial_prompt=options.initial_prompt,
            carry_initial_prompt=carry,
            token_timestamps=options.word_timestamps or options.max_segment_length > 0,
            audio_ctx=audio_ctx,
        )

    def _report(self, chunk: _Chunk, fraction: float) -> None:
        with self._lock:
            chunk.fraction = fraction
            done = sum(one.fraction * one.timeline.n_packed for one in self._chunks)
            if self.options.progress:
                self.options.progress(min(done / sum(one.timeline.n_packed for one in self._chunks), 1.0))

    def _settle(self, chunk: _Chunk, raw_segments: list[RawSegment]) -> None:
        with self._lock:
            chunk.windows_with_text.add(chunk.windows)
            chunk.settled += raw_segments
            self._give_out()

    def _end(self, chunk: _Chunk) -> None:
        with self._lock:
            chunk.fraction = 1.0
            chunk.ended = True
            self._give_out()

    def _give_out(self) -> None:
        """Give out what is settled of each chunk whose predecessors have ended."""
        for chunk in self._chunks[self._n_given_out :]:
            for raw in chunk.settled:
                self._give_out_segment(raw, chunk.timeline)
            chunk.settled.clear()
            if not chunk.ended:
                return
            self._n_given_out += 1

    def _give_out_segment(self, raw: RawSegment, timeline: Timeline) -> None:
        language = "en" if self.options.task == "translate" else self._language or "en"  # of the text
        limit = self.options.max_segment_length
        for piece in words.split(raw, language, limit) if limit else [raw]:
            segment = words.to_segment(
                piece,
                index=len(self._segments),
                language=language,
                span=lambda start, end: self._span(start, end, timeline),
                with_words=self.options.word_timestamps,
            )
            self._segments.append(segment)
            if self.on_segment:
                self.on_segment(segment)

    def _span(self, start: float, end: float, timeline: Timeline) -> tuple[float, float]:
        """Map times of the packed samples to the caller's timeline; padding beyond the end is cut off."""
        start, end = timeline.span(start, end)
        return round(self.origin_seconds + start, 3), round(self.origin_seconds + end, 3)

    def _result(self, *, complete: bool) -> Transcription:
        return Transcription(
            text=join(self._segments),
            segments=tuple(self._segments),
            language=self._language,
            duration=self.duration,
            task=self.options.task,
            model=self.model,
            timings=Timings(**self._times),
            complete=complete,
            dropped_windows=sum(chunk.windows - len(chunk.windows_with_text) for chunk in self._chunks),
        )


def _at_least_a_second(samples: Samples) -> Samples:
    missing = MIN_SAMPLES - len(samples)
    return np.pad(samples, (0, missing)) if missing > 0 else samples
