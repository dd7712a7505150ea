"""Ours: `WhisperLibraryAdapter`, in three profiles."""

from __future__ import annotations

import logging
import math
import os
from typing import Any

from bench import models, stopwatch
from bench.engines.base import Base, Reply, Request, Setup, without

FITTED = "fitted"  # audio_ctx: as many whole steps as the clip needs

# All that is asked of the adapter stands here. `adapter` goes to its constructor, `request` to each call.
PROFILES: dict[str, dict[str, dict[str, Any]]] = {
    "accurate": {"adapter": {}, "request": {"beam_size": 5}},
    "balanced": {"adapter": {}, "request": {}},
    "fast": {"adapter": {}, "request": {"beam_size": 1, "audio_ctx": FITTED}},
}


def beam_size(profile: str) -> int | None:
    """Return the beam size that belongs to a profile, None where any will do."""
    size: int | None = PROFILES[profile]["request"].get("beam_size")
    return size


class Adapter(Base):
    """The adapter in the worker's process."""

    def __init__(self, setup: Setup) -> None:
        os.environ.update({name: "" for name in os.environ if name.startswith("WHISPER_")})
        from whisperlib import WhisperLibraryAdapter  # noqa: PLC0415 - GOMP_SPINCOUNT is set when it is imported

        profile = PROFILES[setup.variant or "balanced"]
        options = without({"threads": setup.threads, "device": "cpu"}) | profile["adapter"]
        self.whisper = WhisperLibraryAdapter(models.ggml(setup.size, setup.kind), **options)
        self.version = f"{self.whisper.config.library_version} {self.whisper.config.compute_type}"
        self._request = profile["request"]
        logging.getLogger("whisperlib").setLevel(logging.ERROR)

    def transcribe(self, request: Request) -> Reply:
        """Transcribe with the profile's options over the request's."""
        options: dict[str, Any] = {"language": "en", "beam_size": request.beam_size} | self._request
        if request.skip_pauses:
            options["condition_on_previous_text"] = False
        if options.get("audio_ctx") == FITTED:
            options["audio_ctx"] = fitted(request.seconds)
        if not request.detailed:
            return Reply(self.whisper.transcribe(request.audio, **options).text)
        watch = stopwatch.Stopwatch()
        result = self.whisper.transcribe(request.audio, cancel=watch.token, progress=watch.progress, **options)
        return Reply(result.text, watch.stages(result.timings))

    def close(self) -> None:
        """Free the model."""
        self.whisper.close()


def fitted(seconds: float) -> int:
    """Return the smallest `audio_ctx` that holds a clip, 0 (all) where it is longer than a window."""
    from whisperlib.options import AUDIO_CTX_STEP, MAX_AUDIO_CTX, SECONDS_PER_AUDIO_CTX  # noqa: PLC0415

    steps = math.ceil(seconds / SECONDS_PER_AUDIO_CTX / AUDIO_CTX_STEP)
    return steps * AUDIO_CTX_STEP if steps * AUDIO_CTX_STEP < MAX_AUDIO_CTX else 0
