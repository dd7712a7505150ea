"""Reads the encoder's half of a ggml Whisper model, whatever its weight type, as plain numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from whisperlib import models
from whisperlib.models import Header

Floats = npt.NDArray[np.float32]

# Besides the encoder proper: the projections of its output that every decoder layer attends to.
_WANTED = re.compile(r"encoder\.|decoder\.blocks\.\d+\.cross_attn\.(key|value)\.")


@dataclass(frozen=True)
class Weights:
    """The tensors that turn log-mel into cross-attention keys and values, by their names in the file.

    Each is float32 in numpy's order of dimensions: a matrix is (out, in), a convolution (out, in, kernel).
    """

    header: Header
    tensors: dict[str, Floats]

    def __getitem__(self, name: str) -> Floats:
        return self.tensors[name]


def read(path: Path) -> Weights:
    """Read and dequantise the encoder of the model file `path`.

    Raises ModelNotFoundError, or ModelFileError for what whisper.cpp could not load.
    """
    import gguf  # noqa: PLC0415  (an extra)

    header, located = models.locate_tensors(path)
    tensors: dict[str, Floats] = {}
    with path.open("rb") as file:
        for name, (tensor, offset) in located.items():
            if not _WANTED.match(name):
                continue
            file.seek(offset)
            raw = np.frombuffer(file.read(tensor.size), np.uint8)
            kind = models.WEIGHT_TYPES[tensor.quantization]
            rows = raw.reshape(-1, tensor.shape[0] // kind.elements * kind.block_bytes)
            numbers = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType(kind.tensor_id))
            tensors[name] = numbers.astype(np.float32, copy=False).reshape(tensor.shape[::-1])
    return Weights(header, tensors)
