"""Ours: only the encoder, cross-attention keys and values with it, OpenVINO's and ggml's.

whisperlib is imported where one is made, as in `adapter`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from bench import models
from bench.engines.base import Base, Reply, Request, Setup

if TYPE_CHECKING:
    from whisperlib.binding import State

SUBTRACTED_RUNS = 3


class Encoder(Base):
    """Encodes a request's first window; the variant is "float", "int8" or "ggml".

    A run of the library computes the log-mel spectrogram, encodes, and copies keys and values out; the same run with
    an encoder that does nothing is subtracted, the fastest of a few.
    """

    @staticmethod
    def prepare(setup: Setup) -> None:
        """Make the ggml file, and OpenVINO's encoder beside it."""
        model = models.ggml(setup.size, setup.kind)
        if setup.variant != "ggml":
            models.accelerate(model, setup.variant)

    def __init__(self, setup: Setup) -> None:
        from whisperlib import binding, encoder, system, variants  # noqa: PLC0415

        self._threads = setup.threads or system.cpu_allowance().cores
        library = binding.load(variants.choose("cpu").directory)
        path = models.ggml(setup.size, setup.kind)
        choice = encoder.choose(
            path,
            wanted="ggml" if setup.variant == "ggml" else "openvino",
            precision="int8" if setup.variant == "int8" else "auto",
            device="cpu",
            takes_encoder=library.takes_encoder,
        )
        self._context = binding.Context(library, path)
        self._context.use_encoder(lambda _window: None)
        self._idle = self._context.new_state()
        loaded = choice.accelerated and encoder.load(choice.accelerated, choice.computes_in, self._threads, 1)
        self._context.use_encoder(loaded or None)
        self._state = self._context.new_state()
        self._subtracted: dict[str, float] = {}
        self.version = f"{choice}, of a file in {setup.kind}"

    def transcribe(self, request: Request) -> Reply:
        """Encode; there is no text."""
        from whisperlib import audio  # noqa: PLC0415

        samples = audio.load(request.audio)

        def seconds(state: State) -> float:
            started = time.perf_counter()
            state.encode(samples, self._threads)
            return time.perf_counter() - started

        if request.audio not in self._subtracted:
            self._subtracted[request.audio] = min(seconds(self._idle) for _ in range(SUBTRACTED_RUNS))
        return Reply("", seconds=seconds(self._state) - self._subtracted[request.audio])

    def close(self) -> None:
        """Free the model."""
        self._context.close()
