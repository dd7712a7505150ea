"""Measuring a model: test files, our own whisper-cli, word error rates.

`python -m tools.micro_model.evaluate MODEL` takes the bundled samples, with `--sets DIR` the test sets that the
recipe made.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import jiwer
import numpy as np
import soundfile
import soxr

from tools.ggml_file import MICRO_MODEL, REPOSITORY
from tools.micro_model.clips import RATE, Clip, Samples
from tools.micro_model.human_digits import Digits, spoken_string

WHISPER_CLI = REPOSITORY / "native/lib/cpu/whisper-cli"
SAMPLES = REPOSITORY / "whisperlib/assets/samples"

Segments = list[tuple[float, float, str]]


@dataclass(frozen=True)
class Recording:
    """A test file, what is said in it and when: `segments` are (start, end, text) in seconds."""

    file: str
    language: str
    segments: Segments

    @property
    def text(self) -> str:
        return " ".join(text for _, _, text in self.segments)


@dataclass(frozen=True)
class Score:
    """What came out for some files.

    `exact` counts those right to the letter. `error_rate` is the word error rate, None without words;
    `time_error` the median error of the segments' starts and ends in seconds, None if no segment was found.
    """

    files: int
    exact: int
    error_rate: float | None
    time_error: float | None

    def __str__(self) -> str:
        rate = "no words" if self.error_rate is None else f"WER {self.error_rate:6.1%}"
        times = "" if self.time_error is None else f", times {self.time_error * 1000:.0f} ms"
        return f"{rate}, exact {self.exact}/{self.files}{times}"


# ---- test files


def write_set(folder: Path, name: str, recordings: list[tuple[Samples, str, Segments]]) -> None:
    """Write one test set: `folder`/`name`/000.wav and so on, and `folder`/`name`.json."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    listed = []
    for index, (samples, language, segments) in enumerate(recordings):
        file = f"{name}/{index:03d}.wav"
        soundfile.write(folder / file, np.clip(samples, -1, 1), RATE, subtype="PCM_16")
        listed.append(asdict(Recording(file, language, segments)))
    (folder / f"{name}.json").write_text(json.dumps(listed, ensure_ascii=False, indent=1))


def single(clips: list[Clip], rng: np.random.Generator) -> list[tuple[Samples, str, Segments]]:
    """Each clip by itself, with a little silence around it and hardly audible noise."""
    recordings = []
    for clip in clips:
        samples, segments = _sequence([clip], rng, first=(0.1, 0.9), pause=(0.2, 0.9))
        recordings.append((samples, clip.language, segments))
    return recordings


def phone(recordings: list[tuple[Samples, str, Segments]]) -> list[tuple[Samples, str, Segments]]:
    """Take the same recordings through 8 kHz."""

    def narrowed(samples: Samples) -> Samples:
        result: Samples = soxr.resample(soxr.resample(samples, RATE, 8000), 8000, RATE)
        return result

    return [(narrowed(samples), language, segments) for samples, language, segments in recordings]


def long(clips: list[Clip], seconds: float, rng: np.random.Generator) -> tuple[Samples, str, Segments]:
    """One recording of about `seconds`, which takes whisper.cpp several windows."""
    chosen, total = [], 0.0
    while total < seconds:
        chosen.append(clips[rng.integers(len(clips))])
        total += len(chosen[-1].samples) / RATE + 0.9
    samples, segments = _sequence(chosen, rng, first=(0.1, 0.6), pause=(0.3, 1.5))
    return samples, clips[0].language, segments


def speechless(rng: np.random.Generator) -> list[tuple[Samples, str, Segments]]:
    """Silence, noise, hum, a tone, clicks; 3 to 50 s. Nothing is to be written for them."""
    time = np.arange(8 * RATE) / RATE
    clicks = np.zeros(6 * RATE)
    clicks[rng.integers(0, len(clicks), 12)] = 0.8
    sounds = [np.zeros(3 * RATE), np.zeros(20 * RATE), np.zeros(45 * RATE)]
    sounds += [rng.standard_normal(5 * RATE) * level for level in (0.001, 0.01, 0.1)]
    sounds += [
        rng.standard_normal(50 * RATE) * 0.01,
        0.05 * sum((np.sin(2 * np.pi * 50 * k * time) / k for k in range(1, 6)), np.zeros(len(time))),
        0.2 * np.sin(2 * np.pi * 440 * time[: 4 * RATE]),
        clicks,
    ]
    return [(sound.astype(np.float32), "en", []) for sound in sounds]


def human(digits: Digits, count: int, rng: random.Random) -> list[tuple[Samples, str, Segments]]:
    """Strings of three to eight digits; half of them single digits."""
    recordings = []
    silence = np.zeros(RATE // 2, np.float32)
    for index in range(count):
        length = 1 if index % 2 else rng.randint(3, 8)
        takes = digits[rng.choice(sorted(digits))]
        samples, text = spoken_string(takes, [rng.randrange(10) for _ in range(length)], rng)
        segment = (0.5, 0.5 + len(samples) / RATE, text)
        recordings.append((np.concatenate([silence, samples, silence]), "en", [segment]))
    return recordings


def _sequence(
    clips: list[Clip], rng: np.random.Generator, first: tuple[float, float], pause: tuple[float, float]
) -> tuple[Samples, Segments]:
    parts: list[Samples] = [np.zeros(int(RATE * rng.uniform(*first)), np.float32)]
    segments: Segments = []
    for clip in clips:
        start = sum(map(len, parts)) / RATE
        parts.append(clip.floats() * np.float32(rng.uniform(0.4, 1)))
        segments.append((start, start + len(clip.samples) / RATE, clip.text))
        parts.append(np.zeros(int(RATE * rng.uniform(*pause)), np.float32))
    samples = np.concatenate(parts)
    return (samples + rng.standard_normal(len(samples)) * 0.0008).astype(np.float32), segments


# ---- scores


def score(model: Path, folder: Path, recordings: list[Recording], whisper_cli: Path, threads: int = 1) -> Score:
    """Transcribe `recordings`, whose files lie in `folder`, and compare; ChildProcessError if whisper-cli fails.

    All parameters but the language are whisper-cli's defaults. One thread is enough for so small a model; more
    of them only wait for one another on a busy machine.
    """
    with tempfile.TemporaryDirectory(prefix="evaluate") as name:
        command = [str(whisper_cli), "-m", str(model), "-t", str(threads), "-oj", "-np"]
        heard = list(_transcribe(command, folder, recordings, Path(name)))
    texts = [" ".join(text for _, _, text in segments) for segments in heard]
    exact = sum(text == recording.text for text, recording in zip(texts, recordings, strict=True))
    spoken = [plain(recording.text) for recording in recordings]
    rate = jiwer.wer(spoken, [plain(text) for text in texts]) if any(spoken) else None
    errors = [
        abs(found - meant)
        for segments, recording in zip(heard, recordings, strict=True)
        if len(segments) == len(recording.segments)
        for got, wanted in zip(segments, recording.segments, strict=True)
        for found, meant in zip(got[:2], wanted[:2], strict=True)
    ]
    return Score(len(recordings), exact, rate, float(np.median(errors)) if errors else None)


def plain(text: str) -> str:
    """Lower case, no punctuation, hyphens as spaces: what words are compared in."""
    return " ".join(re.sub(r"[^\w\s']", "", text.lower().replace("-", " ")).split())


def read_recordings(path: Path) -> list[Recording]:
    """Read a test set's list, or the bundled samples' refs.json."""
    recordings = []
    for entry in json.loads(path.read_text()):
        segments = [
            (s["start"], s["end"], s["text"]) if isinstance(s, dict) else (s[0], s[1], s[2]) for s in entry["segments"]
        ]
        recordings.append(Recording(entry["file"], entry["language"], segments))
    return recordings


def _transcribe(base: list[str], folder: Path, recordings: list[Recording], out: Path) -> Iterator[Segments]:
    """Yield the segments heard in each recording; whisper-cli runs once for each language."""
    for language in sorted({recording.language for recording in recordings}):
        command = [*base, "-l", language]
        for index, recording in enumerate(recordings):
            if recording.language == language:
                command += ["-f", str(folder / recording.file), "-of", str(out / str(index))]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            raise ChildProcessError(f"{base[0]} failed ({done.returncode}): {done.stderr.strip()[-300:]}")
    for index in range(len(recordings)):
        transcription = json.loads((out / f"{index}.json").read_text(errors="replace"))["transcription"]
        yield [
            (entry["offsets"]["from"] / 1000, entry["offsets"]["to"] / 1000, entry["text"].strip())
            for entry in transcription
        ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.micro_model.evaluate", description="Word error rates.")
    parser.add_argument("model", type=Path, nargs="?", default=MICRO_MODEL)
    parser.add_argument("--sets", type=Path, help="folder of test sets; without it the bundled samples, file by file")
    parser.add_argument("--whisper-cli", type=Path, default=WHISPER_CLI)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if not options.whisper_cli.exists():
        sys.exit(f"{options.whisper_cli} not found: run `make native`, or give --whisper-cli")
    lists = sorted(options.sets.glob("*.json")) if options.sets else [SAMPLES / "refs.json"]
    for path in lists:
        recordings = read_recordings(path)
        if not options.sets:
            for recording in recordings:
                found = score(options.model, SAMPLES, [recording], options.whisper_cli, options.threads)
                print(f"{recording.file:26} {recording.language} {found}")
        found = score(options.model, path.parent, recordings, options.whisper_cli, options.threads)
        print(f"{path.stem if options.sets else 'all':29} {found}")


if __name__ == "__main__":
    main()
