"""The stock `pywhispercpp` wheel: whisper.cpp as the package index has it compiled."""

from __future__ import annotations

import importlib.metadata
import threading
import time

from bench import models
from bench.engines.base import Base, Reply, Request, Setup, without
from bench.engines.programs import VAD_MODEL


class PyWhisperCpp(Base):
    """One model with one state; a second request waits."""

    def __init__(self, setup: Setup) -> None:
        import _pywhispercpp  # noqa: PLC0415
        from pywhispercpp.model import Model  # noqa: PLC0415

        self._binding = _pywhispercpp
        self._strategies = _pywhispercpp.whisper_sampling_strategy
        self._lock = threading.Lock()
        options = {"language": "en", "print_progress": False, "print_realtime": False, "n_threads": setup.threads}
        self._model = Model(
            str(models.ggml(setup.size, setup.kind)), redirect_whispercpp_logs_to=None, **without(options)
        )
        self.version = importlib.metadata.version("pywhispercpp")

    def transcribe(self, request: Request) -> Reply:
        """Transcribe with the wheel's defaults."""
        greedy = request.beam_size == 1
        options = {
            "strategy": self._strategies.WHISPER_SAMPLING_GREEDY
            if greedy
            else self._strategies.WHISPER_SAMPLING_BEAM_SEARCH,
            "beam_search": {"beam_size": -1 if greedy else request.beam_size, "patience": -1.0},
            "vad": request.skip_pauses,
            "vad_model_path": str(VAD_MODEL),
            "n_max_text_ctx": 0 if request.skip_pauses else 16384,
        }
        with self._lock:
            segments = self._model.transcribe(request.audio, **options)
        return Reply(" ".join(segment.text for segment in segments))


class PyWhisperCppEncoder(PyWhisperCpp):
    """Its `whisper_encode` alone, which computes the cross-attention's keys and values too."""

    def __init__(self, setup: Setup) -> None:
        import soundfile  # noqa: PLC0415

        super().__init__(setup)
        self._read = soundfile.read
        self._threads = setup.threads or 4  # whisper.cpp's default
        self.version += f", a file in {setup.kind}"

    def transcribe(self, request: Request) -> Reply:
        """Encode the first window; there is no text."""
        samples, _ = self._read(request.audio, dtype="float32")
        context = self._model._ctx
        _check(self._binding.whisper_pcm_to_mel(context, samples, len(samples), self._threads))
        started = time.perf_counter()
        _check(self._binding.whisper_encode(context, 0, self._threads))
        return Reply("", seconds=time.perf_counter() - started)


def _check(status: int) -> None:
    if status:
        raise RuntimeError(f"the wheel's whisper.cpp answered {status}")
