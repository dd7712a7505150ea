"""Runs the OpenVINO encoder: one compiled model for all states, as many infer requests as run at once."""

from __future__ import annotations

import queue
from pathlib import Path
from typing import Any

from whisperlib.binding import EncoderWindow
from whisperlib.encoder.graph import KEYS, MEL, VALUES
from whisperlib.errors import EngineError, ModelFileError


class OpenVinoEncoder:
    """A compiled encoder; calling it encodes a window (`binding.Encoder`). Safe to use from many threads.

    `precision` is what it computes in: "bf16" or "f32"; a graph that was quantised to int8 does the rest in that.
    `concurrency` windows are encoded at once, with `threads` threads each; more wait. Raises ModelFileError where
    OpenVINO refuses the files.
    """

    def __init__(self, xml: Path, *, precision: str, threads: int, concurrency: int = 1) -> None:
        import openvino as ov  # noqa: PLC0415  (an extra)

        self._tensor = ov.Tensor
        self._core = ov.Core()
        self._xml = xml
        self._precision = precision
        self._compiled_for = (0, 0)
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.share(threads, concurrency)

    def share(self, threads: int, concurrency: int) -> None:
        """Compile it for other numbers of threads and windows, if they are others; not while it encodes.

        What was compiled before is freed first, as each has the weights in memory once more. Raises ModelFileError.
        """
        if self._compiled_for == (threads, concurrency):
            return
        self._compiled_for = (0, 0)
        self._idle = queue.SimpleQueue()
        properties: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": self._precision,
            "INFERENCE_NUM_THREADS": threads * concurrency,
            "NUM_STREAMS": concurrency,
            # Pinned threads wait for a core that somebody else has.
            "ENABLE_CPU_PINNING": False,
        }
        try:
            compiled = self._core.compile_model(str(self._xml), "CPU", properties)
            requests = [compiled.create_infer_request() for _ in range(concurrency)]
        except RuntimeError as error:
            raise ModelFileError(
                f"{self._xml} cannot be used: {_first_line(error)}; make it anew with `whisperlib models accelerate`"
            ) from None
        for request in requests:
            self._idle.put(request)
        self._compiled_for = (threads, concurrency)

    def __call__(self, window: EncoderWindow) -> None:
        """Encode one window into the library's own memory. Raises EngineError."""
        request = self._idle.get()
        try:
            for name, array in ((MEL, window.mel[None]), (KEYS, window.out.keys), (VALUES, window.out.values)):
                request.set_tensor(name, self._tensor(array, shared_memory=True))
            request.infer()
        except RuntimeError as error:
            raise EngineError(f"the OpenVINO encoder failed: {_first_line(error)}") from None
        finally:
            self._idle.put(request)


def _first_line(error: RuntimeError) -> str:
    """Take what OpenVINO says without the places in its source that surround it."""
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("Exception from")]
    return (lines or ["it gave no reason"])[0]
