"""Silero in our libwhisper, against the same network written out in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tools.ggml_file import read_tensors
from whisperlib import assets, binding
from whisperlib.binding import VadContext
from whisperlib.errors import ModelFileError
from whisperlib.pcm import SAMPLE_RATE, Samples

HEADER_BYTES = 4 + 4 + len("silero-16k") + 4 * (3 + 19)
FRAME, PADDING, STFT, HOP = 512, 64, 256, 128
Array = npt.NDArray[np.float64]


def tensors() -> dict[str, npt.NDArray[np.floating[Any]]]:
    with assets.VAD_MODEL.open("rb") as file:
        file.seek(HEADER_BYTES)
        return {name.removeprefix("_model."): values for name, values in read_tensors(file)}


def sigmoid(x: Array) -> Array:
    return np.asarray((1 + np.tanh(x / 2)) / 2, np.float64)


def by_definition(samples: Samples) -> Array:
    """The probability of each frame; the transform has the window of the file, its sines and cosines are exact."""
    model = {name: values.astype(np.float64) for name, values in tensors().items()}
    frames = np.zeros((-(-len(samples) // FRAME), FRAME))
    frames.flat[: len(samples)] = samples
    padded = np.pad(frames, ((0, 0), (PADDING, PADDING)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, STFT, axis=1)[:, ::HOP]
    hann = model["stft.forward_basis_buffer"][0, 0]
    x = np.abs(np.fft.rfft(windows * hann)).transpose(0, 2, 1)
    for layer, stride in enumerate((1, 2, 2, 1)):
        name = f"encoder.{layer}.reparam_conv"
        columns = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), (0, 0), (1, 1))), 3, axis=2)
        x = np.einsum("nctk,ock->not", columns[:, :, ::stride], model[f"{name}.weight"], optimize=True)
        x = np.maximum(x + model[f"{name}.bias"][:, None], 0)
    of_frames = x[:, :, 0] @ model["decoder.rnn.weight_ih"].T
    of_frames += model["decoder.rnn.bias_ih"] + model["decoder.rnn.bias_hh"]
    hidden, cell, logits = np.zeros(HOP), np.zeros(HOP), []
    for of_frame in of_frames:
        into, forget, new, out = np.split(of_frame + model["decoder.rnn.weight_hh"] @ hidden, 4)
        cell = sigmoid(forget) * cell + sigmoid(into) * np.tanh(new)
        hidden = sigmoid(out) * np.tanh(cell)
        logits.append(np.maximum(hidden, 0) @ model["decoder.decoder.2.weight"].ravel())
    return sigmoid(np.array(logits) + model["decoder.decoder.2.bias"])


def detect(library_dir: Path, samples: Samples, threads: int = 1) -> Samples:
    with VadContext(binding.load(library_dir), assets.VAD_MODEL, n_threads=threads) as vad:
        return vad.speech_probabilities(np.ascontiguousarray(samples))


@pytest.mark.parametrize("name", sorted(path.stem for path in assets.SAMPLES.glob("*.flac")))
def test_of_samples(library_dir: Path, sample: Callable[[str], Samples], name: str) -> None:
    assert np.abs(detect(library_dir, sample(name)) - by_definition(sample(name))).max() < 1e-4


@pytest.mark.parametrize("length", [1, 511, 512, 513, 8 * 512, 8 * 512 + 1, 1024 * 512 + 1])
@pytest.mark.parametrize("threads", [1, 3])
def test_of_any_length(library_dir: Path, sample: Callable[[str], Samples], length: int, threads: int) -> None:
    samples = sample("long_slt75")[SAMPLE_RATE // 2 :][:length]
    assert np.abs(detect(library_dir, samples, threads) - by_definition(samples)).max() < 1e-4


@pytest.mark.parametrize("amplitude", [0.0, 1e-5, 0.2, 1e3])
def test_of_silence_and_noise(library_dir: Path, amplitude: float) -> None:
    samples = np.random.default_rng(6).normal(0, amplitude, SAMPLE_RATE).astype(np.float32)
    assert np.abs(detect(library_dir, samples) - by_definition(samples)).max() < 1e-4


def test_another_transform_is_refused(library_dir: Path, tmp_path: Path) -> None:
    data = bytearray(assets.VAD_MODEL.read_bytes())
    basis = tensors()["stft.forward_basis_buffer"].tobytes()
    at = data.index(basis)
    data[at : at + len(basis)] = basis[::-1]
    (tmp_path / "vad.bin").write_bytes(data)
    with pytest.raises(ModelFileError, match="not Silero's model for 16 kHz"):
        VadContext(binding.load(library_dir), tmp_path / "vad.bin")
