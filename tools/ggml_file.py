"""The ggml file of a Whisper model: header, mel filters, vocabulary, then tensors to the end of the file.

The format is the one that `whisper_model_load` in whisper.cpp's `src/whisper.cpp` reads. All numbers are
little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

MAGIC = 0x67676D6C
REPOSITORY = Path(__file__).resolve().parent.parent
MICRO_MODEL = REPOSITORY / "whisperlib/assets/whisper_micro/ggml-micro-f16.bin"

Array = npt.NDArray[np.floating[Any]]
DType = type[np.float32] | type[np.float16]
DTYPES: dict[int, DType] = {0: np.float32, 1: np.float16}


@dataclass(frozen=True)
class Header:
    """The eleven numbers after the magic, in the order of the file. `ftype`: 0 is f32, 1 is f16."""

    n_vocab: int
    n_audio_ctx: int
    n_audio_state: int
    n_audio_head: int
    n_audio_layer: int
    n_text_ctx: int
    n_text_state: int
    n_text_head: int
    n_text_layer: int
    n_mels: int
    ftype: int


@dataclass(frozen=True)
class Preamble:
    """All that comes before the tensors.

    `mel_filters` is float32 of shape (n_mels, 201). `vocabulary` holds the bytes of each text token; the
    special tokens after the last of them are made up by whisper.cpp, so it is shorter than `n_vocab`.
    """

    header: Header
    mel_filters: npt.NDArray[np.float32]
    vocabulary: tuple[bytes, ...]

    def with_header(self, header: Header) -> Preamble:
        return replace(self, header=header)

    def to_bytes(self) -> bytes:
        parts = [
            struct.pack("<12i", MAGIC, *astuple(self.header)),
            struct.pack("<2i", *self.mel_filters.shape),
            self.mel_filters.astype("<f4").tobytes(),
            struct.pack("<i", len(self.vocabulary)),
        ]
        for token in self.vocabulary:
            parts += [struct.pack("<i", len(token)), token]
        return b"".join(parts)


@dataclass(frozen=True)
class TensorSpec:
    """What whisper.cpp expects of one tensor. `shape` is numpy's order: the reverse of ggml's `ne`."""

    name: str
    shape: tuple[int, ...]
    dtype: DType


def read_preamble(file: BinaryIO) -> Preamble:
    """Read up to the first tensor. Raises ValueError if `file` is not a Whisper model in ggml format."""
    magic, *numbers = struct.unpack("<12i", _exactly(file, 48))
    if magic != MAGIC:
        raise ValueError(f"not a ggml file: it begins with 0x{magic & 0xFFFFFFFF:08x}")
    header = Header(*numbers)
    n_mels, n_bins = struct.unpack("<2i", _exactly(file, 8))
    if n_mels != header.n_mels or n_bins != 201:
        raise ValueError(f"mel filters of {n_mels} x {n_bins}, expected {header.n_mels} x 201")
    filters = np.frombuffer(_exactly(file, n_mels * n_bins * 4), "<f4").reshape(n_mels, n_bins)
    (count,) = struct.unpack("<i", _exactly(file, 4))
    vocabulary = tuple(_exactly(file, struct.unpack("<i", _exactly(file, 4))[0]) for _ in range(count))
    return Preamble(header, filters, vocabulary)


def read_tensors(file: BinaryIO) -> Iterator[tuple[str, Array]]:
    """Yield name and values of each f32 or f16 tensor. Raises ValueError for quantised files and cut ones."""
    while first := file.read(12):
        n_dims, name_length, ftype = struct.unpack("<3i", first)
        shape = struct.unpack(f"<{n_dims}i", _exactly(file, 4 * n_dims))[::-1]
        name = _exactly(file, name_length).decode()
        if ftype not in DTYPES:
            raise ValueError(f"{name} has type {ftype}: only f32 and f16 can be read")
        dtype = np.dtype(DTYPES[ftype])
        size = dtype.itemsize * int(np.prod(shape))
        yield name, np.frombuffer(_exactly(file, size), dtype).reshape(shape)


def write_tensor(file: BinaryIO, name: str, values: Array) -> None:
    ftype = 1 if values.dtype == np.float16 else 0
    file.write(struct.pack("<3i", values.ndim, len(name), ftype))
    file.write(struct.pack(f"<{values.ndim}i", *reversed(values.shape)))
    file.write(name.encode())
    file.write(np.ascontiguousarray(values).data)


def tensor_layout(header: Header) -> Iterator[TensorSpec]:
    """Every tensor of a model with these dimensions, in a fixed order.

    whisper.cpp finds tensors by name, so any order loads. Matrices have the type that `ftype` names; biases,
    norms and positions are f32, as upstream's `models/convert-pt-to-ggml.py` writes them.
    """
    matrix = DTYPES[header.ftype]
    audio, text = header.n_audio_state, header.n_text_state
    yield TensorSpec("encoder.positional_embedding", (header.n_audio_ctx, audio), np.float32)
    for number, channels in ((1, header.n_mels), (2, audio)):
        yield TensorSpec(f"encoder.conv{number}.weight", (audio, channels, 3), matrix)
        yield TensorSpec(f"encoder.conv{number}.bias", (audio, 1), np.float32)
    yield from _norm("encoder.ln_post", audio)
    for layer in range(header.n_audio_layer):
        yield from _block(f"encoder.blocks.{layer}", audio, matrix, cross=False)
    yield TensorSpec("decoder.positional_embedding", (header.n_text_ctx, text), np.float32)
    yield TensorSpec("decoder.token_embedding.weight", (header.n_vocab, text), matrix)
    yield from _norm("decoder.ln", text)
    for layer in range(header.n_text_layer):
        yield from _block(f"decoder.blocks.{layer}", text, matrix, cross=True)


def _linear(name: str, out: int, inputs: int, dtype: DType, bias: bool = True) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.weight", (out, inputs), dtype)
    if bias:
        yield TensorSpec(f"{name}.bias", (out,), np.float32)


def _norm(name: str, width: int) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.weight", (width,), np.float32)
    yield TensorSpec(f"{name}.bias", (width,), np.float32)


def _attention(name: str, width: int, dtype: DType) -> Iterator[TensorSpec]:
    yield from _norm(f"{name}_ln", width)
    for part in ("query", "key", "value", "out"):
        yield from _linear(f"{name}.{part}", width, width, dtype, bias=part != "key")


def _block(name: str, width: int, dtype: DType, cross: bool) -> Iterator[TensorSpec]:
    yield from _attention(f"{name}.attn", width, dtype)
    if cross:
        yield from _attention(f"{name}.cross_attn", width, dtype)
    yield from _norm(f"{name}.mlp_ln", width)
    yield from _linear(f"{name}.mlp.0", 4 * width, width, dtype)
    yield from _linear(f"{name}.mlp.2", width, 4 * width, dtype)


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size) if size >= 0 else b""
    if len(data) != size:
        raise ValueError("the file ends too early")
    return data
