"""The log-mel spectrogram as whisper.cpp computes it, for many windows at once.

`log_mel_spectrogram` in whisper.cpp's `src/whisper.cpp`: periodic Hann window of 400 samples, hop of 160, the
first half window mirrored, power spectrum, mel filters, log10 of at least 1e-10, floor at the maximum minus
8, then (x + 4) / 4.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

WINDOW, HOP, BINS = 400, 160, 201
Array = npt.NDArray[np.float32]

_HANN = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)).astype(np.float32)


def log_mel(samples: Array, filters: Array) -> Array:
    """Return log10 of the mel powers, not yet normalised.

    `samples` is float32 of shape (batch, 160 n), 16 kHz; `filters` (mels, 201), or (batch, mels, 201) for a set
    of its own for each item. The result is float32 of shape (batch, mels, n).
    """
    padded = np.pad(samples, ((0, 0), (WINDOW // 2, WINDOW // 2)), mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW, axis=1)[:, ::HOP]
    spectrum = np.fft.rfft(frames[:, : samples.shape[1] // HOP] * _HANN)
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
    mels = filters @ power.transpose(0, 2, 1)
    logarithms: Array = np.log10(np.maximum(mels, 1e-10))
    return logarithms


def normalised(mels: Array) -> Array:
    """Clamp each window of `log_mel`'s result to 8 below its maximum and scale it as the model expects."""
    floor = mels.max(axis=(1, 2), keepdims=True) - 8
    scaled: Array = (np.maximum(mels, floor) + 4) / 4
    return scaled


def warped(filters: Array, factor: float) -> Array:
    """`filters` moved up or down in frequency: a shorter or longer vocal tract (VTLP, Jaitly and Hinton 2013)."""
    bins = np.arange(BINS)
    moved = [np.interp(bins * factor, bins, row, right=0) * factor for row in filters]
    return np.array(moved, np.float32)


def centres(filters: Array) -> Array:
    """Centre frequency of each filter in Hz, shape (mels,)."""
    hertz = np.arange(BINS, dtype=np.float32) * 40
    means: Array = (filters @ hertz) / filters.sum(axis=1)
    return means
