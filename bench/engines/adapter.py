"""Ours: `WhisperLibraryAdapter`, in its profiles, with OpenVINO's encoder and with ggml's.

whisperlib is imported where an adapter is made, not before: importing it bounds how long OpenMP's threads spin, and
the workers of other engines import this module too.
"""

from __future__ import annotations

import importlib.metadata
import logging
from dataclasses import dataclass
from typing import Any

from bench import models
from bench.engines.base import Base, Reply, Request, Setup, without


@dataclass(frozen=True)
class Variant:
    """What is asked of the adapter. `beam_size` is set where the profile has one that it is known for."""

    profile: str
    encoder: str = "openvino"
    beam_size: int | None = None


VARIANTS = {
    "accurate": Variant("accurate", beam_size=5),
    "balanced": Variant("balanced"),
    "balanced-ggml": Variant("balanced", encoder="ggml"),
    "fast": Variant("fast", beam_size=1),
}


class Adapter(Base):
    """The adapter in the worker's process."""

    @staticmethod
    def prepare(setup: Setup) -> None:
        """Make the ggml file, and OpenVINO's encoder beside it."""
        model = models.ggml(setup.size, setup.kind)
        if VARIANTS[setup.variant].encoder == "openvino":
            models.accelerate(model)

    def __init__(self, setup: Setup) -> None:
        import whisperlib  # noqa: PLC0415
        from whisperlib import WhisperLibraryAdapter  # noqa: PLC0415
        from whisperlib.settings import Settings  # noqa: PLC0415

        variant = VARIANTS[setup.variant]
        settings = Settings(encoder=variant.encoder, profile=variant.profile)
        options = without({"threads": setup.threads, "device": "cpu"})
        self.whisper = WhisperLibraryAdapter(models.ggml(setup.size, setup.kind), settings=settings, **options)
        config = self.whisper.config
        self.version = (
            f"{whisperlib.__version__} on whisper.cpp {config.library_version} in {config.compute_type}, "
            f"encoder {config.encoder}"
        )
        if variant.encoder == "openvino":
            self.version += f", OpenVINO {importlib.metadata.version('openvino')}"
        logging.getLogger("whisperlib").setLevel(logging.ERROR)

    def transcribe(self, request: Request) -> Reply:
        """Transcribe with the profile; the width of the search is the request's, as every engine's."""
        options: dict[str, Any] = {"language": "en", "beam_size": request.beam_size}
        if request.skip_pauses:
            options["condition_on_previous_text"] = False
        if not request.detailed:
            return Reply(self.whisper.transcribe(request.audio, **options).text)
        from bench import stopwatch  # noqa: PLC0415 - imports whisperlib

        watch = stopwatch.Stopwatch()
        result = self.whisper.transcribe(request.audio, cancel=watch.token, progress=watch.progress, **options)
        return Reply(result.text, watch.stages(result.timings))

    def close(self) -> None:
        """Free the model."""
        self.whisper.close()
