"""What happens to clean speech before the model hears it: rooms, noise, telephones, masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tools.micro_model import features
from tools.micro_model.clips import RATE

Array = npt.NDArray[np.float32]
Generator = np.random.Generator

NOISE_SECONDS = 40
_WARPS = np.linspace(0.84, 1.19, 25)


class Augmenter:
    """Banks of noises and rooms, made once, and the spectral changes. All randomness comes from `rng`."""

    def __init__(self, mel_filters: Array, rng: Generator) -> None:
        self.rng = rng
        self.filters = mel_filters
        self._warped = np.stack([features.warped(mel_filters, factor) for factor in _WARPS])
        self._centres = features.centres(mel_filters)
        self._noises = [_noise(index, rng) for index in range(24)]
        self._rooms = [_room(rng) for _ in range(48)]

    def speed(self, samples: Array) -> Array:
        """Half of the time: faster and higher, or slower and lower, by up to 17 %."""
        if self.rng.random() < 0.5:
            return samples
        factor = self.rng.uniform(0.87, 1.17)
        places = np.arange(int(len(samples) / factor)) * factor
        return np.asarray(np.interp(places, np.arange(len(samples)), samples), np.float32)

    def recorded(self, samples: Array, end: int, speech: bool, phone: bool, strength: float) -> Array:
        """Put a window into a room, at some level, with some noise; nothing is left after sample `end`.

        `strength` 0 to 1 is how often the harder changes come. `phone` adds what a telephone does to samples;
        its band is `spectrum`'s part.
        """
        rng = self.rng
        if speech:
            if rng.random() < 0.25 * strength:
                samples = _convolved(samples, self._rooms[rng.integers(len(self._rooms))])
            samples = samples / (np.abs(samples).max() + 1e-9) * 10 ** rng.uniform(-1.6, 0)
        samples = samples.copy()
        if rng.random() < (0.25 + 0.35 * strength if speech else 0.8):
            noise = self._noises[rng.integers(len(self._noises))]
            start = rng.integers(len(noise) - len(samples))
            loud = np.abs(samples) > 1e-4
            level = np.sqrt((samples**2).sum() / max(1, loud.sum())) if speech else 10 * 10 ** rng.uniform(-4, -0.8)
            samples[:end] += noise[start : start + end] * level * 10 ** (-rng.uniform(5, 45) / 20)
        if phone:
            samples[:end] = self._coded(samples[:end])
        samples[end:] = 0
        return samples.astype(np.float32)

    def spectrum(self, samples: Array, phone: npt.NDArray[np.bool_], strength: float) -> Array:
        """Return the normalised log-mel of a batch of windows, changed: float32, shape (batch, mels, frames)."""
        rng = self.rng
        batch = len(samples)
        warp = rng.random() < 0.6 * strength
        filters = self._warped[rng.integers(len(_WARPS), size=batch)] if warp else self.filters
        mels = features.log_mel(samples, filters)
        gains = np.stack([self._gains(bool(item), strength) for item in phone])[:, :, None]
        # Digital silence stays at its floor, whatever the equaliser.
        mels = np.where(mels > -9.99, np.maximum(mels + gains, -10), mels).astype(np.float32)
        mels = features.normalised(mels)
        for item in mels:
            if rng.random() < 0.5 * strength:
                self._mask(item)
        return mels

    def _coded(self, samples: Array) -> npt.NDArray[np.floating[Any]]:
        kind = self.rng.random()
        if kind < 0.3:  # coarse steps
            step = 10 ** self.rng.uniform(-3, -1.7) * 2
            return np.asarray(np.round(samples / step) * step)
        if kind < 0.44:  # mu-law, 8 bits
            clipped = np.clip(samples, -1, 1)
            code = np.round(np.log1p(255 * np.abs(clipped)) / np.log(256) * 127) / 127
            return np.asarray(np.sign(clipped) * (256**code - 1) / 255)
        return samples

    def _gains(self, phone: bool, strength: float) -> Array:
        """Gain of each mel band, in powers of ten: an equaliser of six bands, and a telephone's band edges."""
        rng = self.rng
        gains = np.zeros(len(self._centres))
        if rng.random() < 0.5 * strength:
            bands = np.linspace(0, len(gains) - 1, 6)
            gains += np.interp(np.arange(len(gains)), bands, rng.uniform(-0.5, 0.5, 6))
        if phone:
            above = (self._centres - rng.uniform(3300, 4000)) / rng.uniform(50, 300)
            gains -= np.clip(above, 0, 1) * rng.uniform(3, 8)
            if rng.random() < 0.6:
                below = (rng.uniform(50, 350) - self._centres) / 150
                gains -= np.clip(below, 0, 1) * rng.uniform(0.5, 3)
        return gains.astype(np.float32)

    def _mask(self, mels: Array) -> None:
        """Blank one or two bands and up to two moments (SpecAugment, Park et al. 2019), in place."""
        rng = self.rng
        lowest, mean = mels.min(), mels.mean()
        for _ in range(rng.integers(1, 3)):
            start = rng.integers(len(mels) - 4)
            mels[start : start + rng.integers(1, 12)] = lowest if rng.random() < 0.5 else mean
        for _ in range(rng.integers(3)):
            start = rng.integers(mels.shape[1] - 12)
            mels[:, start : start + rng.integers(1, 12)] = lowest


def _convolved(samples: Array, room: Array) -> Array:
    size = 1 << (len(samples) + len(room) - 1).bit_length()
    spectrum = np.fft.rfft(samples, size) * np.fft.rfft(room, size)
    return np.fft.irfft(spectrum, size)[: len(samples)].astype(np.float32)


def _room(rng: Generator) -> Array:
    """Return a room's response: the direct sound, then noise that dies away within 0.08 to 0.4 s."""
    length = int(RATE * rng.uniform(0.08, 0.4))
    decay = np.exp(-np.arange(length) / (length / rng.uniform(4, 7)))
    response = rng.standard_normal(length) * decay * rng.uniform(0.05, 0.35)
    response[: int(rng.uniform(10, 80))] = 0
    response[0] = 1
    return response.astype(np.float32)


def _noise(index: int, rng: Generator) -> Array:
    """Return noise of unit power: coloured for every index, some also narrow, humming, swelling, clicking or tonal.

    Pure tones belong here: a model that never met one writes words for it.
    """
    length = RATE * NOISE_SECONDS
    time = np.arange(length) / RATE
    hertz = np.maximum(np.fft.rfftfreq(length, 1 / RATE), 20)
    spectrum = np.fft.rfft(rng.standard_normal(length)) * hertz ** -rng.uniform(0, 1.2)
    if index % 4 == 3:
        low, high = sorted(rng.uniform(50, 6000, 2))
        spectrum /= 1 + ((hertz - (low + high) / 2) / ((high - low) / 2 + 100)) ** 4
    noise = np.fft.irfft(spectrum, length)
    noise /= noise.std()
    if index % 6 == 5:  # mains hum and its overtones
        base = rng.uniform(48, 130)
        overtones = (np.sin(2 * np.pi * base * k * time + rng.uniform(0, 6)) / k for k in range(1, 6))
        noise = noise * 0.2 + sum(overtones)
    if index % 5 == 4:
        noise *= np.repeat(rng.uniform(0.2, 1, length // 1600), 1600)
    if index % 8 == 7:  # tones and beeps
        noise *= 0.01
        for _ in range(rng.integers(1, 3)):
            noise += np.sin(2 * np.pi * 10 ** rng.uniform(2, 3.6) * time)
        if rng.random() < 0.5:
            noise *= (np.arange(length) // int(rng.uniform(1600, 16000))) % 2
    if index % 8 == 6:  # clicks
        noise *= 0.05
        noise[rng.integers(0, length, 60)] += 20 * rng.choice([-1, 1], 60)
    return np.asarray(noise / noise.std(), np.float32)
