"""Clips: one spoken sentence each, and the files that hold them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

RATE = 16000
Samples = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Clip:
    """`samples`: int16, shape (n,), 16 kHz mono, without silence around the speech.

    `voice` is "engine:name"; `translation` the English text, for other languages only.
    """

    samples: npt.NDArray[np.int16]
    text: str
    language: str
    voice: str
    translation: str | None = None

    def floats(self) -> Samples:
        """The samples as float32, -1.0 to 1.0."""
        return np.asarray(self.samples / np.float32(32768), np.float32)

    @property
    def speaker(self) -> str:
        """The voice without its accent: espeak-ng speaks every accent with the same voice variants."""
        return f"espeak:{self.voice.split('+')[-1]}" if self.voice.startswith("espeak:") else self.voice


def save_clips(path: Path, clips: list[Clip]) -> None:
    """Write `clips` to one .npz file, in one go: a broken-off run leaves no half file behind."""
    described = [[c.text, c.language, c.voice, c.translation, len(c.samples)] for c in clips]
    partial = path.with_suffix(".partial.npz")
    samples = np.concatenate([c.samples for c in clips]) if clips else np.zeros(0, np.int16)
    np.savez(partial, samples=samples, described=np.array(json.dumps(described)))
    partial.replace(path)


def load_clips(paths: Iterable[Path]) -> list[Clip]:
    clips = []
    for path in sorted(paths):
        with np.load(path) as stored:
            samples, described = stored["samples"], json.loads(str(stored["described"]))
        end = 0
        for text, language, voice, translation, length in described:
            start, end = end, end + length
            clips.append(Clip(samples[start:end], text, language, voice, translation))
    return clips


def trimmed(samples: Samples, threshold: float, margin: int = 0) -> npt.NDArray[np.int16] | None:
    """Cut silence off both ends, bring the peak to 0.7, convert to int16.

    Silence is what stays below `threshold` of the loudest 10 ms; `margin` blocks of 10 ms of it are left.
    None if hardly any sound is left (under 0.15 s) or the clip is longer than 9 s.
    """
    blocks = len(samples) // 160
    peaks = np.abs(samples[: blocks * 160]).reshape(-1, 160).max(axis=1) if blocks else np.zeros(0)
    loud = np.flatnonzero(peaks > max(threshold * peaks.max(initial=0), 1e-4))
    if not len(loud):
        return None
    start, end = max(0, loud[0] - margin) * 160, (loud[-1] + 1 + margin) * 160
    samples = samples[start:end]
    if not 0.15 * RATE <= len(samples) <= 9 * RATE:
        return None
    return np.asarray(samples / np.abs(samples).max() * 0.7 * 32767, np.int16)
