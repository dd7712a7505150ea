"""Human voices: single English digits from the Free Spoken Digit Dataset.

The data set (Jakobovski/free-spoken-digit-dataset, CC BY-SA 4.0) is not part of this project: the user gives
its folder, or a tar file of it. Files are named `{digit}_{speaker}_{index}.wav`, 8 kHz mono.
"""

from __future__ import annotations

import io
import random
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import soundfile
import soxr

from tools.micro_model.clips import RATE, Clip, Samples, trimmed
from tools.micro_model.grammar import ONES

TEST_TAKES = 5  # the first takes of each digit are for measuring, for every speaker
_NAME = re.compile(r"(\d)_(\w+)_(\d+)\.wav")

Digits = dict[str, list[list[Clip]]]


def load_digits(path: Path, test: bool = False) -> Digits:
    """Return {speaker: [clips of zero, ..., clips of nine]}: the takes for training, or those for measuring.

    Raises ValueError if `path` holds no recording of that kind.
    """
    speakers: Digits = {}
    for name, data in _recordings(path):
        match = _NAME.fullmatch(name)
        if not match or (int(match[3]) < TEST_TAKES) != test:
            continue
        recorded, rate = soundfile.read(io.BytesIO(data), dtype="float32")
        samples = trimmed(soxr.resample(recorded, rate, RATE), threshold=0.04, margin=1)
        if samples is not None:
            digit, speaker = int(match[1]), match[2]
            takes = speakers.setdefault(speaker, [[] for _ in range(10)])
            takes[digit].append(Clip(samples, ONES[digit], "en", f"human:{speaker}"))
    if not speakers or not all(all(takes) for takes in speakers.values()):
        raise ValueError(f"{path}: no recordings named digit_speaker_index.wav for all ten digits")
    return speakers


def spoken_string(takes: list[list[Clip]], digits: list[int], rng: random.Random) -> tuple[Samples, str]:
    """Put single digits of one speaker together, with pauses between them; returns samples and text."""
    slowness = rng.random()
    parts: list[Samples] = []
    for digit in digits:
        if parts:
            parts.append(np.zeros(int(RATE * rng.uniform(0.02, 0.15 + 0.35 * slowness)), np.float32))
        parts.append(rng.choice(takes[digit]).floats() * np.float32(rng.uniform(0.6, 1)))
    return np.concatenate(parts), " ".join(ONES[digit] for digit in digits).capitalize() + "."


def _recordings(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        for file in sorted(path.rglob("*.wav")):
            yield file.name, file.read_bytes()
        return
    with tarfile.open(path) as archive:
        for member in sorted(archive.getmembers(), key=lambda m: m.name):
            if member.isfile() and (data := archive.extractfile(member)):
                yield PurePosixPath(member.name).name, data.read()
