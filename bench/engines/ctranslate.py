"""faster-whisper, on CTranslate2."""

from __future__ import annotations

import importlib.metadata
import time
from typing import Any

from bench import models
from bench.engines.base import Base, Reply, Request, Setup, without

START = [50258, 50259, 50359]  # start, English, transcribe
STEP_RUNS = 3


class FasterWhisper(Base):
    """`WhisperModel` in the type that the variant names, or the batched pipeline over it."""

    @staticmethod
    def prepare(setup: Setup) -> None:
        """Convert the weights."""
        models.ctranslate2(setup.size, setup.variant.partition("-")[0])

    def __init__(self, setup: Setup) -> None:
        from faster_whisper import BatchedInferencePipeline, WhisperModel  # noqa: PLC0415

        kind, _, batched = setup.variant.partition("-")
        directory = str(models.ctranslate2(setup.size, kind))
        options = without({"cpu_threads": setup.threads})
        self._model = WhisperModel(directory, device="cpu", compute_type=kind, **options)
        self._batched = BatchedInferencePipeline(self._model) if batched else None
        versions = (importlib.metadata.version(name) for name in ("faster-whisper", "ctranslate2"))
        self.version = "{} on CTranslate2 {}".format(*versions)

    def transcribe(self, request: Request) -> Reply:
        """Transcribe with faster-whisper's defaults; pauses are skipped with its own Silero."""
        options = {"language": "en", "beam_size": request.beam_size, "vad_filter": request.skip_pauses}
        options["suppress_tokens"] = []  # symbols are suppressed by default, and random words may be symbols
        if self._batched:
            segments, _ = self._batched.transcribe(request.audio, batch_size=8, **options)
        else:
            options["condition_on_previous_text"] = not request.skip_pauses
            segments, _ = self._model.transcribe(request.audio, **options)
        return Reply(" ".join(segment.text.strip() for segment in segments))


class CTranslateEncoder(FasterWhisper):
    """The encoder of CTranslate2, with the cross-attention's keys and values, which its first decoder step computes.

    So one decoder step (`detect_language`) is asked for too, and the time of a later one subtracted.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._later_step: float | None = None

    def transcribe(self, request: Request) -> Reply:
        """Encode the first window; there is no text."""
        from faster_whisper.audio import decode_audio, pad_or_trim  # noqa: PLC0415

        features = pad_or_trim(self._model.feature_extractor(decode_audio(request.audio)))
        model = self._model.model
        started = time.perf_counter()
        encoded = self._model.encode(features)
        model.detect_language(encoded)
        spent = time.perf_counter() - started
        if self._later_step is None:
            self._later_step = self._step_seconds(encoded)
        return Reply("", seconds=spent - self._later_step)

    def _step_seconds(self, encoded: Any) -> float:
        """Return what a decoder step takes after the first one: the slope from a short answer to a long one."""
        points = []
        for length in (4, 2 * models.WORDS):
            runs = []
            for _ in range(STEP_RUNS):
                started = time.perf_counter()
                (answer,) = self._model.model.generate(encoded, [START], beam_size=1, max_length=2 * length)
                runs.append(time.perf_counter() - started)
            points.append((len(answer.sequences_ids[0]), min(runs)))
        (few, short), (many, long) = points
        return (long - short) / (many - few)
