"""One request's way through the engine: find speech, pack it, transcribe on a fresh state, map times back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from whisperlib import words
from whisperlib.binding import Callbacks, Context, FullArguments, RawSegment, State, VadContext
from whisperlib.errors import (
    AudioError,
    EngineError,
    InterruptedTranscription,
    OptionError,
)
from whisperlib.interrupt import Interrupt
from whisperlib.options import SECONDS_PER_AUDIO_CTX, TranscribeOptions
from whisperlib.pcm import SAMPLE_RATE, Samples
from whisperlib.results import LanguageGuess, Segment, Timings, Transcription, join
from whisperlib.scheduler import Turn
from whisperlib.speech import Timeline, find_regions, pack

MIN_SAMPLES = SAMPLE_RATE  # whisper.cpp before 1.9.3 reads out of bounds on shorter audio
MAX_TEXT_CTX = 16384  # whisper_full's own default: as much of the text so far as the model takes


@dataclass
class Request:
    """One transcription. `samples`: float32, shape (n,), 16 kHz; what the caller handed in, after its offset.

    `origin_seconds` is where they begin on the caller's timeline, `duration` the length of the whole input.
    `on_segment` is called with each segment as it is settled, in the engine's thread.
    """

    samples: Samples
    options: TranscribeOptions
    interrupt: Interrupt
    threads: int
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
        self._windows = 0
        self._windows_with_text: set[int] = set()

    def run(self, context: Context, vad: VadContext | None, turn: Turn) -> Transcription:
        """Transcribe; called once, in a thread of the engine."""
        self._turn = turn
        self._times["queue"] = time.monotonic() - self.submitted
        try:
            self.interrupt.check()
            self._transcribe(context, vad)
        except InterruptedTranscription as reason:
            return self.interrupted(reason)
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
        self._turn = turn
        self.interrupt.check()
        samples, _ = self._find_speech(vad)
        if not len(samples):
            raise AudioError("there is no speech in the audio to tell the language of")
        with context.new_state() as state:
            probabilities = state.detect_language(_at_least_a_second(samples), self.threads)
        language = max(probabilities, key=probabilities.__getitem__)
        return LanguageGuess(language, probabilities[language], probabilities)

    def _transcribe(self, context: Context, vad: VadContext | None) -> None:
        samples, timeline = self._find_speech(vad)
        if not len(samples):
            return
        self._check_audio_ctx(len(samples))
        samples = _at_least_a_second(samples)
        started = time.monotonic()
        try:
            # A state is used once: KV rows, random numbers and buffers of an earlier request change the text.
            with context.new_state() as state:
                self._run_state(state, context, samples, timeline)
        except EngineError:
            # An interrupted step is reported as a failed one.
            self.interrupt.check()
            raise
        finally:
            paused = self._turn.paused_seconds
            self._times["queue"] += paused
            self._times["inference"] = time.monotonic() - started - paused

    def _find_speech(self, vad: VadContext | None) -> tuple[Samples, Timeline | None]:
        if vad is None:
            return self.samples, None
        started = time.monotonic()
        probabilities = vad.speech_probabilities(self.samples)
        regions = find_regions(probabilities, len(self.samples), vad.window_samples, self.options.vad_options)
        self._times["vad"] = time.monotonic() - started
        self.interrupt.check()
        if not regions:
            self._turn.set_audio_seconds(0.0)
            return self.samples[:0], None
        packed, timeline = pack(self.samples, regions)
        self._turn.set_audio_seconds(len(packed) / SAMPLE_RATE)
        return packed, timeline

    def _check_audio_ctx(self, n_samples: int) -> None:
        audio_ctx = self.options.audio_ctx
        if audio_ctx and n_samples > audio_ctx * SECONDS_PER_AUDIO_CTX * SAMPLE_RATE:
            raise OptionError(
                f"audio_ctx = {audio_ctx} covers {audio_ctx * SECONDS_PER_AUDIO_CTX:g} s and there are "
                f"{n_samples / SAMPLE_RATE:.1f} s to transcribe: the rest would be skipped"
            )

    def _run_state(self, state: State, context: Context, samples: Samples, timeline: Timeline | None) -> None:
        if self._language is None:
            self._language = _detect(state, context, samples, self.threads)
            self.interrupt.check()
        state.full(
            self._arguments(context),
            samples,
            Callbacks(
                segments=lambda raw: self._settle(raw, timeline),
                progress=self.options.progress,
                window=self._begin_window,
                stop=lambda: self.interrupt.reason() is not None,
            ),
        )
        # A false encoder_begin ends the run without an error.
        self.interrupt.check()

    def _arguments(self, context: Context) -> FullArguments:
        options = self.options
        carry, n_max_text_ctx = options.carry_initial_prompt, MAX_TEXT_CTX
        if not options.condition_on_previous_text:
            # whisper.cpp has one budget for the prompt and the text so far: give the prompt all of it.
            carry = options.initial_prompt is not None
            n_max_text_ctx = context.token_count(options.initial_prompt) + 1 if options.initial_prompt else 0
        return FullArguments(
            n_threads=self.threads,
            language=self._language or "en",
            translate=options.task == "translate",
            beam_size=options.beam_size,
            best_of=options.best_of,
            temperature=options.temperature,
            temperature_inc=options.temperature_increment,
            entropy_thold=options.entropy_threshold,
            logprob_thold=options.logprob_threshold,
            no_speech_thold=options.no_speech_threshold,
            n_max_text_ctx=n_max_text_ctx,
            initial_prompt=options.initial_prompt,
            carry_initial_prompt=carry,
            token_timestamps=options.word_timestamps or options.max_segment_length > 0,
            audio_ctx=options.audio_ctx,
        )

    def _begin_window(self) -> None:
        self._windows += 1
        self._turn.window()

    def _settle(self, raw_segments: list[RawSegment], timeline: Timeline | None) -> None:
        self._windows_with_text.add(self._windows)
        language = "en" if self.options.task == "translate" else self._language or "en"  # of the text
        for raw in raw_segments:
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

    def _span(self, start: float, end: float, timeline: Timeline | None) -> tuple[float, float]:
        """Map times of the packed samples to the caller's timeline; padding beyond the end is cut off."""
        limit = len(self.samples) / SAMPLE_RATE
        start, end = min(start, limit), min(end, limit)
        if timeline:
            start, end = timeline.span(start, end)
        return round(self.origin_seconds + start, 3), round(self.origin_seconds + max(start, end), 3)

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
            dropped_windows=self._windows - len(self._windows_with_text),
        )


def _at_least_a_second(samples: Samples) -> Samples:
    missing = MIN_SAMPLES - len(samples)
    return np.pad(samples, (0, missing)) if missing > 0 else samples


def _detect(state: State, context: Context, samples: Samples, threads: int) -> str:
    if not context.is_multilingual:
        return "en"
    probabilities = state.detect_language(samples, threads)
    return max(probabilities, key=probabilities.__getitem__)
