"""Checks a model file before native code reads it: on a malformed one whisper.cpp aborts the process or worse.

The layouts are those that `whisper_model_load` and `whisper_vad_init_with_params` (src/whisper.cpp) read: numbers
that describe the model, then every tensor behind a small header of its own. All headers are walked to the end of
the file, by seeks, so that a truncated or padded file is found in milliseconds. All numbers are little-endian.
"""

from __future__ import annotations

import math
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn

from whisperlib.errors import ModelFileError, ModelNotFoundError

MAGIC = 0x67676D6C  # GGML_FILE_MAGIC
MAX_TOKEN_BYTES = 128  # of the English vocabulary's longest; whisper-quantize has a buffer of so many
MAX_DIMENSIONS = 3
MAX_NAME_BYTES = 128
QUANTIZATION_VERSION_FACTOR = 1000  # GGML_QNT_VERSION_FACTOR: ftype holds a version above it
HEAD_WIDTH = 64  # of every Whisper model


class WeightType(NamedTuple):
    """A ggml tensor type: ids in the file and in a tensor's header, elements and bytes of a block."""

    file_id: int
    tensor_id: int
    elements: int
    block_bytes: int


WEIGHT_TYPES = {
    "f32": WeightType(0, 0, 1, 4),
    "f16": WeightType(1, 1, 1, 2),
    "q4_0": WeightType(2, 2, 32, 18),
    "q4_1": WeightType(3, 3, 32, 20),
    "q8_0": WeightType(7, 8, 32, 34),
    "q5_0": WeightType(8, 6, 32, 22),
    "q5_1": WeightType(9, 7, 32, 24),
    "q4_k": WeightType(12, 12, 256, 144),
    "q5_k": WeightType(13, 13, 256, 176),
    "q6_k": WeightType(14, 14, 256, 210),
}
# whisper.cpp aborts on a model that is f32 throughout: its convolution on a CPU takes f16 only.
_BY_FILE_ID = {kind.file_id: name for name, kind in WEIGHT_TYPES.items() if name != "f32"}
_BY_TENSOR_ID = {kind.tensor_id: name for name, kind in WEIGHT_TYPES.items()}

# The 16 kHz network of Silero 5 and 6: window, context, four layers of (in, out, kernel), LSTM, last convolution.
SILERO = (512, 64, 4, 129, 128, 3, 128, 64, 3, 64, 64, 3, 64, 128, 3, 128, 128, 128, 1)


@dataclass(frozen=True)
class Header:
    """What a Whisper model says of itself, named and ordered as in the file."""

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

    @property
    def quantization(self) -> str:
        """Weight type of the matrices: "f16", "q5_1"."""
        return _BY_FILE_ID[self.ftype % QUANTIZATION_VERSION_FACTOR]

    @property
    def multilingual(self) -> bool:
        """Whether the vocabulary has tokens of languages (`is_multilingual`)."""
        return self.n_vocab >= 51_865


@dataclass(frozen=True)
class VadHeader:
    """What a voice activity model says of itself: "silero-16k", "6.2.0"."""

    model_type: str
    version: str


class Tensor(NamedTuple):
    """A tensor: its dimensions in ggml's order, the fastest first, and its weight type."""

    shape: tuple[int, ...]
    quantization: str

    @property
    def size(self) -> int:
        """Bytes of its data."""
        kind = WEIGHT_TYPES[self.quantization]
        return math.prod(self.shape) // kind.elements * kind.block_bytes


class Located(NamedTuple):
    """A tensor and the place of its data in the file: bytes from the start."""

    tensor: Tensor
    offset: int


def check_header(path: Path) -> Header:
    """Check a Whisper model from its first byte to its last, but for the weights themselves, and describe it.

    Takes milliseconds. Raises ModelNotFoundError, or ModelFileError for what whisper.cpp could not load.
    """
    return locate_tensors(path)[0]


def locate_tensors(path: Path) -> tuple[Header, dict[str, Located]]:
    """Check a Whisper model as `check_header` does, and tell where in the file each tensor's data lie."""
    with _reading(path) as reader:
        reader.magic()
        header = Header(*reader.numbers(11))
        if problem := _problem(header):
            reader.refuse(problem)
        filters = reader.numbers(2)
        if filters != (header.n_mels, 201):
            reader.refuse(f"its mel filters are {filters[0]} × {filters[1]}, not {header.n_mels} × 201")
        reader.skip(4 * math.prod(filters))
        reader.vocabulary(header.n_vocab)
        return header, reader.tensors(layout(header))


def check_vad_header(path: Path) -> VadHeader:
    """Check a Silero voice activity model from its first byte to its last, but for the weights themselves.

    Raises ModelNotFoundError, or ModelFileError for what whisper.cpp could not load.
    """
    with _reading(path) as reader:
        reader.magic()
        (length,) = reader.numbers(1)
        if not 1 <= length <= MAX_NAME_BYTES:
            reader.refuse(f"the name of its type has {length} bytes, not 1 to {MAX_NAME_BYTES}")
        model_type = reader.take(length).decode("ascii", "replace")
        version = reader.numbers(3)
        dimensions = reader.numbers(len(SILERO))
        if (model_type, dimensions) != ("silero-16k", SILERO):
            reader.refuse(f"it is {model_type!r} of the dimensions {dimensions}, not 'silero-16k' of {SILERO}")
        reader.tensors(_silero_layout())
        return VadHeader(model_type, ".".join(str(number) for number in version))


def layout(header: Header) -> dict[str, Tensor]:
    """Every tensor that whisper.cpp expects of a model with this header."""
    state, kind = header.n_audio_state, header.quantization
    tensors = {
        "encoder.positional_embedding": Tensor((state, header.n_audio_ctx), "f32"),
        "encoder.conv1.weight": Tensor((3, header.n_mels, state), "f16"),
        "encoder.conv1.bias": Tensor((1, state), "f32"),
        "encoder.conv2.weight": Tensor((3, state, state), "f16"),
        "encoder.conv2.bias": Tensor((1, state), "f32"),
        "decoder.positional_embedding": Tensor((state, header.n_text_ctx), "f32"),
        "decoder.token_embedding.weight": Tensor((state, header.n_vocab), kind),
        **_norm("encoder.ln_post", state),
        **_norm("decoder.ln", state),
    }
    for layer in range(header.n_audio_layer):
        tensors |= _block(f"encoder.blocks.{layer}", ("attn",), state, kind)
    for layer in range(header.n_text_layer):
        tensors |= _block(f"decoder.blocks.{layer}", ("attn", "cross_attn"), state, kind)
    return tensors


def _block(block: str, attentions: tuple[str, ...], state: int, kind: str) -> dict[str, Tensor]:
    tensors = {
        **_norm(f"{block}.mlp_ln", state),
        f"{block}.mlp.0.weight": Tensor((state, 4 * state), kind),
        f"{block}.mlp.0.bias": Tensor((4 * state,), "f32"),
        f"{block}.mlp.2.weight": Tensor((4 * state, state), kind),
        f"{block}.mlp.2.bias": Tensor((state,), "f32"),
    }
    for attention in attentions:
        tensors |= _norm(f"{block}.{attention}_ln", state)
        for part in ("query", "key", "value", "out"):
            tensors[f"{block}.{attention}.{part}.weight"] = Tensor((state, state), kind)
            if part != "key":
                tensors[f"{block}.{attention}.{part}.bias"] = Tensor((state,), "f32")
    return tensors


def _norm(name: str, state: int) -> dict[str, Tensor]:
    return {f"{name}.weight": Tensor((state,), "f32"), f"{name}.bias": Tensor((state,), "f32")}


def _silero_layout() -> dict[str, Tensor]:
    tensors = {"_model.stft.forward_basis_buffer": Tensor((256, 1, 258), "f16")}
    for layer in range(4):
        channels_in, channels_out, kernel = SILERO[3 + 3 * layer : 6 + 3 * layer]
        name = f"_model.encoder.{layer}.reparam_conv"
        tensors[f"{name}.weight"] = Tensor((kernel, channels_in, channels_out), "f16")
        tensors[f"{name}.bias"] = Tensor((channels_out,), "f32")
    for part in ("ih", "hh"):
        tensors[f"_model.decoder.rnn.weight_{part}"] = Tensor((128, 512), "f32")
        tensors[f"_model.decoder.rnn.bias_{part}"] = Tensor((512,), "f32")
    tensors["_model.decoder.decoder.2.weight"] = Tensor((128, 1), "f16")
    tensors["_model.decoder.decoder.2.bias"] = Tensor((1,), "f32")
    return tensors


def _problem(header: Header) -> str:
    """Say which number is not a Whisper model's, if one is."""
    # Each language is a token of its own: 99, or 100 since large-v3; whisper.cpp's table has no more.
    allowed: dict[str, range | tuple[int, ...]] = {
        "n_vocab": (51_864, 51_865, 51_866),
        "n_audio_ctx": (1500,),
        "n_audio_state": range(HEAD_WIDTH, 4097, HEAD_WIDTH),
        "n_audio_head": (header.n_audio_state // HEAD_WIDTH,),
        "n_audio_layer": range(1, 33),
        "n_text_ctx": (448,),
        "n_text_state": (header.n_audio_state,),
        "n_text_head": (header.n_audio_state // HEAD_WIDTH,),
        "n_text_layer": range(1, 33),
        "n_mels": (80, 128),
    }
    for name, values in allowed.items():
        if (value := getattr(header, name)) not in values:
            return f"{name} = {value}, which no Whisper model has"
    file_id = header.ftype % QUANTIZATION_VERSION_FACTOR
    if header.ftype < 0 or file_id not in _BY_FILE_ID:
        return f"ftype = {header.ftype}, which is none of {', '.join(_BY_FILE_ID.values())}"
    elements = WEIGHT_TYPES[header.quantization].elements
    if header.n_audio_state % elements:
        return f"{header.quantization} needs rows of a multiple of {elements}, and it has {header.n_audio_state}"
    return ""


@contextmanager
def _reading(path: Path) -> Iterator[_Reader]:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ModelFileError(f"{path} is not a file: give a model file")
        with path.open("rb") as file:
            yield _Reader(path, file)
    except FileNotFoundError:
        raise ModelNotFoundError(f"{path} is not there: give a model file, or a name such as small") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ModelFileError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


class _Reader:
    """Reads a file and knows how much of it is left."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self._left = os.fstat(file.fileno()).st_size

    def refuse(self, problem: str) -> NoReturn:
        raise ModelFileError(f"{self._path} is damaged or no Whisper model: {problem}; replace it")

    def take(self, count: int) -> bytes:
        data = self._file.read(count) if count <= self._left else b""
        if len(data) < count:
            self._cut_off()
        self._left -= count
        return data

    def skip(self, count: int) -> None:
        if count > self._left:
            self._cut_off()
        self._left -= count
        self._file.seek(count, os.SEEK_CUR)

    def numbers(self, count: int) -> tuple[int, ...]:
        return struct.unpack(f"<{count}i", self.take(4 * count))

    def magic(self) -> None:
        first = self.take(4)
        if first != struct.pack("<I", MAGIC):
            self.refuse(f"it begins with {first!r} and a ggml file with {struct.pack('<I', MAGIC)!r}")

    def vocabulary(self, most: int) -> None:
        (count,) = self.numbers(1)
        if not 1 <= count <= most:
            self.refuse(f"its vocabulary has {count} tokens, not 1 to {most}")
        entries = self._file.read(min(self._left, count * (4 + MAX_TOKEN_BYTES)))
        position = 0
        for token in range(count):
            length = int.from_bytes(entries[position : position + 4], "little")
            if length > MAX_TOKEN_BYTES:
                self.refuse(f"token {token} has {length} bytes, more than {MAX_TOKEN_BYTES}")
            position += 4 + length
        self._file.seek(-len(entries), os.SEEK_CUR)
        self.skip(position)

    def tensors(self, expected: dict[str, Tensor]) -> dict[str, Located]:
        missing = dict(expected)
        located: dict[str, Located] = {}
        while self._left:
            dimensions, name_bytes, tensor_id = self.numbers(3)
            if not 0 <= dimensions <= MAX_DIMENSIONS or not 1 <= name_bytes <= MAX_NAME_BYTES:
                self.refuse(f"a tensor has {dimensions} dimensions and a name of {name_bytes} bytes")
            shape = self.numbers(dimensions)
            name = self.take(name_bytes).decode("ascii", "replace")
            tensor = missing.pop(name, None)
            if tensor is None:
                self.refuse(f"it has a tensor {name!r} {'twice' if name in expected else 'that no such model has'}")
            found = _BY_TENSOR_ID.get(tensor_id, f"type {tensor_id}")
            if (_padded(shape), found) != (_padded(tensor.shape), tensor.quantization):
                self.refuse(f"tensor {name} is {found} {shape}, not {tensor.quantization} {tensor.shape}")
            located[name] = Located(tensor, self._file.tell())
            self.skip(tensor.size)
        if missing:
            self.refuse(f"it lacks {len(missing)} of {len(expected)} tensors, among them {next(iter(missing))}")
        return located

    def _cut_off(self) -> NoReturn:
        self.refuse(f"it is cut off after {os.fstat(self._file.fileno()).st_size:,} bytes")


def _padded(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape + (1,) * (MAX_DIMENSIONS - len(shape))
