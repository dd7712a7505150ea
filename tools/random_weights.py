"""Write a Whisper model of real dimensions with random weights, for measuring speed and memory.

    python -m tools.random_weights small small.bin

The file has every tensor of the real model in its real shape and type, so its memory and the time of each encode
and each decode step are the real ones; its text is nonsense. It is 2,986 bytes larger than the real file: the
vocabulary is that of whisper.cpp's `for-tests-ggml-*.bin`, where each token that is a part of a character stands
as the three bytes of U+FFFD. The file is f16; other types go through our own `whisper-quantize`, as for a real
model. (f32 is left out: whisper.cpp's convolution on a CPU wants f16 kernels.)

How long whisper.cpp decodes is set by `--tokens N`. With plain random weights every token is equally likely: no
end comes before whisper.cpp's limit of 220 tokens a window, and as the mean log-probability is far below its
threshold it tries again at up to five higher temperatures. So here the decoder's positional embedding points,
at each position, to the token that is to come: `<|0.00|>`, N words, `<|1.00|>`, end of text. The likelihood is
then near 1, no fallback happens, and each window costs N + 3 steps. The plan repeats every N + 3 positions, so
a window that is given the text before it as a prompt starts in the middle of the plan and ends sooner.
N of 220 or more means that no end ever comes: the slowest case, with fallback.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tools.ggml_file import (
    MICRO_MODEL,
    REPOSITORY,
    Array,
    DType,
    Header,
    TensorSpec,
    read_preamble,
    tensor_layout,
    write_tensor,
)


def _header(width: int, heads: int, encoder: int, decoder: int, *, n_vocab: int = 51865, n_mels: int = 80) -> Header:
    return Header(n_vocab, 1500, width, heads, encoder, 448, width, heads, decoder, n_mels, ftype=1)


SIZES = {
    "tiny": _header(384, 6, 4, 4),
    "base": _header(512, 8, 6, 6),
    "small": _header(768, 12, 12, 12),
    "medium": _header(1024, 16, 24, 24),
    "large-v3-turbo": _header(1280, 20, 32, 4, n_vocab=51866, n_mels=128),
}

LONGEST_PLAN = 220  # whisper.cpp decodes at most n_text_ctx / 2 - 4 tokens a window
WORDS = range(1000, 20000)  # ids of common words and syllables in the vocabulary
TYPES = ("f16", "q4_0", "q4_1", "q4_k", "q5_0", "q5_1", "q8_0")
K_BLOCK = 256  # values of a block of the types with a k
QUANTIZE = REPOSITORY / "native/lib/cpu/whisper-quantize"
POSITION_WEIGHT = 100.0  # positions must outweigh what all the layers add, or the plan drowns in it
PLANNED_LOGIT = 24.0  # exp(24) against the sum of 51865 random logits: the planned token gets p ~ 1


def scaled_down(header: Header, layers: int, width: int) -> Header:
    """Return `header` with fewer layers and narrower ones, for tests that only need a valid file.

    Heads stay 64 wide. whisper.cpp takes two decoder layers for a distilled model, which has no timestamps.
    """
    heads = max(1, width // 64)
    return replace(
        header,
        n_audio_state=width,
        n_audio_head=heads,
        n_audio_layer=min(layers, header.n_audio_layer),
        n_text_state=width,
        n_text_head=heads,
        n_text_layer=min(layers, header.n_text_layer),
    )


def mel_filters(n_mels: int) -> npt.NDArray[np.float32]:
    """Triangular filters on Slaney's mel scale with unit area, float32 of shape (n_mels, 201).

    The same as `librosa.filters.mel(sr=16000, n_fft=400, n_mels=n_mels)`, which made the real models' filters:
    linear below 1 kHz (3 mels for 200 Hz), 27 mels for each factor of 6.4 above.
    """
    log_step = np.log(6.4) / 27.0
    highest = 15.0 + np.log(8000 / 1000) / log_step
    mels = np.linspace(0.0, highest, n_mels + 2)
    edges = np.where(mels < 15.0, mels * 200 / 3, 1000 * np.exp(log_step * (mels - 15.0)))[:, None]
    bins = np.linspace(0, 8000, 201)[None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    area = 2.0 / (edges[2:] - edges[:-2])
    return np.asarray(np.maximum(0, np.minimum(rising, falling)) * area, np.float32)


def plan(header: Header, tokens: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Token ids, one for each decoder position: what the decoder is to give there."""
    end_of_text = 50257
    first_timestamp = header.n_vocab - 1501
    words = rng.choice(np.asarray(WORDS), size=min(tokens, LONGEST_PLAN), replace=False)
    cycle = [first_timestamp, *words]
    if tokens < LONGEST_PLAN:
        cycle += [first_timestamp + 50, end_of_text]
    # The prompt is start, language, task: the first answer comes at position 2.
    return np.roll(np.resize(cycle, header.n_text_ctx), 2)


class _Normal:
    """Normally distributed values, drawn from a table of 65,536: several times as fast as drawing each anew."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._table = rng.standard_normal(1 << 16, dtype=np.float32)

    def draw(self, shape: tuple[int, ...], dtype: DType, deviation: float) -> Array:
        indices = self._rng.integers(0, 1 << 16, size=shape, dtype=np.uint16)
        return np.asarray((self._table * np.float32(deviation)).astype(dtype)[indices])


def write_model(path: Path, header: Header, tokens: int = 24, seed: int = 0) -> None:
    """Write a model with these dimensions; the same arguments give the same bytes.

    `tokens` is the number of text tokens decoded for each window. One tensor is in memory at a time, and the
    token embedding. Raises OSError if `path` cannot be written.
    """
    rng = np.random.default_rng(seed)
    normal = _Normal(rng)
    with MICRO_MODEL.open("rb") as file:
        preamble = read_preamble(file)
    layout = {spec.name: spec for spec in tensor_layout(header)}
    width = header.n_text_state
    embedding_spec = layout["decoder.token_embedding.weight"]
    embedding = normal.draw(embedding_spec.shape, embedding_spec.dtype, PLANNED_LOGIT / width)

    with path.open("wb") as file:
        file.write(replace(preamble, header=header, mel_filters=mel_filters(header.n_mels)).to_bytes())
        for name, spec in layout.items():
            if spec is embedding_spec:
                values = embedding
            elif name == "decoder.positional_embedding":
                ids = plan(header, tokens, rng)
                values = POSITION_WEIGHT * embedding[ids].astype(np.float32)
                if tokens < LONGEST_PLAN:
                    # Where timestamps are switched off, the end takes the place of the closing one.
                    closing = ids == header.n_vocab - 1501 + 50
                    values[closing] += POSITION_WEIGHT / 2 * embedding[50257].astype(np.float32)
            else:
                values = _fill(spec, normal)
            write_tensor(file, name, values)


def check_width(header: Header, kind: str) -> None:
    """Raise ValueError where a row of the model is no whole number of the type's blocks."""
    if kind.endswith("_k") and header.n_audio_state % K_BLOCK:
        raise ValueError(f"{kind} needs a width of a multiple of {K_BLOCK}, and it is {header.n_audio_state}")


def quantize(source: Path, target: Path, kind: str) -> None:
    """Make `target` from an f16 file as the package does it. Raises ValueError, also where the width does not fit."""
    with source.open("rb") as file:
        check_width(read_preamble(file).header, kind)
    # Imported here: it sets how OpenMP waits, which is not to reach the other engines of the comparison.
    from whisperlib.errors import WhisperlibError  # noqa: PLC0415
    from whisperlib.models import quantizer  # noqa: PLC0415

    try:
        quantizer.quantize(source, target, kind, QUANTIZE)
    except WhisperlibError as error:
        raise ValueError(str(error)) from None


def _write_quantised(path: Path, header: Header, tokens: int, seed: int, kind: str) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".f16") as full:
        write_model(Path(full.name), header, tokens, seed)
        quantize(Path(full.name), path, kind)


def _fill(spec: TensorSpec, normal: _Normal) -> Array:
    if spec.name.endswith(("ln.weight", "ln_post.weight")):
        return np.ones(spec.shape, spec.dtype)
    if spec.name.endswith("bias"):
        return np.zeros(spec.shape, spec.dtype)
    inputs = int(np.prod(spec.shape[1:]))
    # What flows through a layer keeps its scale; what a layer adds to the stream is small, and stays finite.
    small = spec.name.endswith(("out.weight", "mlp.2.weight"))
    return normal.draw(spec.shape, spec.dtype, (0.1 if small else 1.0) / inputs**0.5)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.random_weights", description="Write a Whisper model with random weights."
    )
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("output", type=Path)
    parser.add_argument("--type", choices=TYPES, default="f16", help="type of the matrices (f16)")
    parser.add_argument("--tokens", type=int, default=24, help="text tokens a window; 220: no end comes (24)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, help="at most so many layers on each side (2: no timestamps)")
    parser.add_argument("--width", type=int, help="model width, a multiple of 64")
    options = parser.parse_args(arguments)
    if options.tokens < 1:
        parser.error("--tokens must be at least 1")
    if options.width is not None and (options.width < 64 or options.width % 64):
        parser.error("--width must be a multiple of 64")
    if options.layers is not None and options.layers < 1:
        parser.error("--layers must be at least 1")

    if options.type != "f16" and not QUANTIZE.exists():
        parser.error(f"{options.type} needs {QUANTIZE}: run `make native` first")

    header = SIZES[options.size]
    if options.layers or options.width:
        header = scaled_down(header, options.layers or header.n_audio_layer, options.width or header.n_audio_state)
    try:
        check_width(header, options.type)
    except ValueError as error:
        parser.error(str(error))
    started = time.monotonic()
    try:
        if options.type == "f16":
            write_model(options.output, header, options.tokens, options.seed)
        else:
            _write_quantised(options.output, header, options.tokens, options.seed, options.type)
    except OSError as error:
        sys.exit(f"{options.output}: {error.strerror or error}")
    except ValueError as error:
        sys.exit(str(error))
    size = options.output.stat().st_size
    print(f"{options.output}: {size:,} bytes in {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()
