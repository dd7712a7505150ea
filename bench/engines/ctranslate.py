"""faster-whisper, on CTranslate2."""

from __future__ import annotations

import importlib.metadata

from bench import models
from bench.engines.base import Base, Reply, Request, Setup, without


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
