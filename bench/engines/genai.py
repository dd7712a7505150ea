"""OpenVINO GenAI's `WhisperPipeline`."""

from __future__ import annotations

import importlib.metadata
import threading

from bench import models
from bench.engines.base import Base, Reply, Request, Setup, without


class GenAi(Base):
    """One pipeline; a second request waits. It has no detection of pauses."""

    @staticmethod
    def prepare(setup: Setup) -> None:
        """Export the weights."""
        models.openvino(setup.size, setup.variant)

    def __init__(self, setup: Setup) -> None:
        import openvino_genai  # noqa: PLC0415
        import soundfile  # noqa: PLC0415

        self._read = soundfile.read
        self._lock = threading.Lock()
        options = without({"INFERENCE_NUM_THREADS": setup.threads})
        self._pipeline = openvino_genai.WhisperPipeline(
            str(models.openvino(setup.size, setup.variant)), "CPU", **options
        )
        self.version = importlib.metadata.version("openvino-genai")

    def transcribe(self, request: Request) -> Reply:
        """Transcribe with timestamps, as all the others do."""
        samples, _ = self._read(request.audio, dtype="float32")
        options = {
            "language": "<|en|>",
            "task": "transcribe",
            "return_timestamps": True,
            "num_beams": request.beam_size,
        }
        with self._lock:
            result = self._pipeline.generate(samples, **options)
        return Reply(" ".join(str(result.texts[0]).split()))
