"""The audio that every engine gets: WAV files cut from the bundled samples, 16 kHz mono 16 bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from bench import models
from whisperlib import assets
from whisperlib.pcm import SAMPLE_RATE, Samples

PAUSE_SECONDS = 6.0  # longer than what any of the engines keeps of a pause


def clip(seconds: float) -> Path:
    """Return a file with so many seconds of the long sample."""
    return _written(f"clip-{seconds:g}", _speech()[: round(seconds * SAMPLE_RATE)])


def talk(minutes: float) -> Path:
    """Return a file of so many minutes: the long sample again and again, with pauses between."""
    turn = np.concatenate([_speech(), np.zeros(round(PAUSE_SECONDS * SAMPLE_RATE), np.float32)])
    return _written(f"talk-{minutes:g}", np.resize(turn, round(minutes * 60 * SAMPLE_RATE)))


def _speech() -> Samples:
    samples, rate = soundfile.read(assets.SAMPLES / "long_slt75.flac", dtype="float32")
    if rate != SAMPLE_RATE:
        raise ValueError(f"long_slt75.flac has {rate} Hz")
    return np.asarray(samples, np.float32)


def _written(name: str, samples: Samples) -> Path:
    path = models.CACHE / "audio" / f"{name}.wav"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}")
        soundfile.write(fresh, samples, SAMPLE_RATE, subtype="PCM_16", format="WAV")
        fresh.rename(path)
    return path
