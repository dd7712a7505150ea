"""The log-mel spectrogram of our libwhisper, against its definition in float64 (openai/whisper, whisper/audio.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tools.ggml_file import read_preamble
from whisperlib import assets, binding
from whisperlib.binding import Context, EncoderWindow
from whisperlib.pcm import SAMPLE_RATE, Samples

SECOND = SAMPLE_RATE
WINDOW, HOP, N_FRAMES = 400, 160, 3000


def by_definition(samples: Samples) -> npt.NDArray[np.float64]:
    """The first 30 s, shape (80, 3000): 30 s of zeros behind the samples, the first half window mirrored."""
    with assets.MICRO_MODEL.open("rb") as file:
        filters = read_preamble(file).mel_filters
    padded = np.concatenate([samples[WINDOW // 2 : 0 : -1], samples, np.zeros(30 * SECOND + WINDOW // 2)])
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    logarithms = np.log10(np.maximum(filters @ np.abs(np.fft.rfft(frames * hann)).T ** 2, 1e-10))
    scaled: npt.NDArray[np.float64] = (np.maximum(logarithms, logarithms.max() - 8) + 4) / 4
    return scaled[:, :N_FRAMES]


@pytest.fixture(scope="module")
def spectrogram(library_dir: Path) -> Iterator[Callable[[Samples, int], Samples]]:
    """What the encoder is given of the first 30 s."""
    seen: list[Samples] = []

    def encode(window: EncoderWindow) -> None:
        seen.append(window.mel.copy())
        window.out.keys[:], window.out.values[:] = np.float16(0), np.float16(0)

    with Context(binding.load(library_dir), assets.MICRO_MODEL) as context:
        context.use_encoder(encode)

        def compute(samples: Samples, threads: int) -> Samples:
            with context.new_state() as state:
                state.encode(np.ascontiguousarray(samples), threads)
            return seen.pop()

        yield compute


def impulse(at: int) -> Samples:
    samples = np.zeros(2 * SECOND, np.float32)
    samples[at] = 1.0
    return samples


def noise(amplitude: float) -> Samples:
    return np.random.default_rng(5).normal(0, amplitude, 2 * SECOND).astype(np.float32)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", ["seen_020", "german_001", "telephone_005", "rms_010", "silence_white5_0001"])
def test_of_samples(
    spectrogram: Callable[[Samples, int], Samples], sample: Callable[[str], Samples], name: str, threads: int
) -> None:
    assert np.abs(spectrogram(sample(name), threads) - by_definition(sample(name))).max() < 1e-4


@pytest.mark.parametrize(
    "length",
    [
        *(SECOND, SECOND + 1, SECOND + HOP - 1, SECOND + HOP),
        *(30 * SECOND - 201, 30 * SECOND - 1, 30 * SECOND, 30 * SECOND + 1, 41 * SECOND),
    ],
)
def test_of_any_length(
    spectrogram: Callable[[Samples, int], Samples], sample: Callable[[str], Samples], length: int
) -> None:
    samples = sample("long_slt75")[:length]
    assert np.abs(spectrogram(samples, 2) - by_definition(samples)).max() < 1e-4


@pytest.mark.parametrize(
    "samples",
    [
        pytest.param(np.zeros(2 * SECOND, np.float32), id="silence"),
        pytest.param(noise(0.2), id="noise"),
        pytest.param(noise(1e-5), id="noise below hearing"),
        pytest.param(np.sign(noise(1.0)), id="clipped"),
        pytest.param(impulse(0), id="the first sample"),
        pytest.param(impulse(-1), id="the last sample"),
    ],
)
def test_of_edges(spectrogram: Callable[[Samples, int], Samples], samples: Samples) -> None:
    assert np.abs(spectrogram(samples, 2) - by_definition(samples)).max() < 1e-4
