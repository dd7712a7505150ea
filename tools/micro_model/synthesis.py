"""Sentences to speech, with three free synthesisers: espeak-ng, flite and festival."""

from __future__ import annotations

import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import soundfile
import soxr

from tools.micro_model import grammar
from tools.micro_model.clips import RATE, Clip, Samples, save_clips, trimmed
from tools.micro_model.grammar import Sentence

PACKAGES = "espeak-ng flite festival festvox-kallpc16k festvox-kdlpc16k festvox-us-slt-hts"
SHARD = 500  # clips a file: what a broken-off run loses at most

ACCENTS = ["en-us"] * 5 + ["en-gb"] * 3 + [
    "en-gb-x-rp", "en-gb-scotland", "en-us-nyc", "en-gb-x-gbcwmd", "en-029", "en-gb-x-gbclan",
]  # fmt: skip
TEST_VARIANTS = ["Annie", "Mike", "f5", "m7", "linda"]
# Whispering, robots and the like: not understood by people either.
LEFT_OUT = {
    "whisper", "whisperf", "Demonic", "robosoft", "robosoft2", "robosoft3", "robosoft4", "robosoft5",
    "robosoft6", "robosoft7", "robosoft8", "UniRobot", "croak", "fast", "announcer", "anikaRobot",
    "RicishayMax", "RicishayMax2", "RicishayMax3", "Tweaky", "Mr", "Storm",
}  # fmt: skip


class MissingToolError(Exception):
    """A program that the recipe needs is not installed; the message says how to get it."""


@dataclass(frozen=True)
class Request:
    """A sentence and how to say it.

    `stretch` over 1 is slower. `pitch` is in Hz, for espeak-ng on its scale of 0 to 99, None for the voice's own.
    `pause` between words, in units of 10 ms, is espeak-ng's only.
    """

    sentence: Sentence
    engine: str
    voice: str
    stretch: float = 1.0
    pitch: float | None = None
    pause: int = 0

    @property
    def label(self) -> str:
        return f"{self.engine}:{self.voice}"


def check_tools() -> None:
    """Raise MissingToolError unless all three synthesisers and their voices are there."""
    missing = [program for program in ("espeak-ng", "flite", "festival") if not shutil.which(program)]
    if not missing:
        voices = _output(["festival", "-b", "(print (voice.list))"])
        wanted = ("cmu_us_slt_arctic_hts", "ked_diphone", "kal_diphone")
        missing = [f"festival's voice {voice}" for voice in wanted if voice not in voices]
    if missing:
        raise MissingToolError(f"{', '.join(missing)} not found: apt-get install {PACKAGES}")


def missing_shards(kind: str, count: int, folder: Path) -> list[tuple[int, Path]]:
    """Number and path of each file of `kind` that is still to be made for `count` clips in all."""
    shards = ((index, folder / f"{kind}-{index:03d}.npz") for index in range(-(-count // SHARD)))
    return [(index, path) for index, path in shards if not path.exists()]


def make_clips(kind: str, count: int, folder: Path, seed: int, jobs: int) -> None:
    """Write about `count` clips of `kind`, a key of KINDS, to files in `folder`; files there are kept."""
    folder.mkdir(parents=True, exist_ok=True)

    def make(shard: tuple[int, Path]) -> None:
        index, path = shard
        rng = random.Random(f"{kind} {seed} {index}")
        wanted = min(SHARD, count - index * SHARD)
        save_clips(path, synthesise([KINDS[kind](rng) for _ in range(wanted)]))

    with ThreadPoolExecutor(jobs) as pool:
        for _ in pool.map(make, missing_shards(kind, count, folder)):
            pass


def synthesise(requests: list[Request]) -> list[Clip]:
    """Say every sentence; clips in the order of `requests`, without those that failed or are too long."""
    with tempfile.TemporaryDirectory(prefix="clips") as name:
        paths = [Path(name, f"{index}.wav") for index in range(len(requests))]
        script = []
        for request, path in zip(requests, paths, strict=True):
            if request.engine == "festival":
                script.append(_festival(request, path))
            else:
                command = _espeak(request, path) if request.engine == "espeak" else _flite(request, path)
                subprocess.run(command, capture_output=True, check=False)
        if script:  # in one process: festival takes long to start
            scheme = Path(name, "script.scm")
            scheme.write_text("\n".join(script))
            subprocess.run(["festival", "-b", scheme], capture_output=True, check=False)  # noqa: S607
        clips = []
        for request, path in zip(requests, paths, strict=True):
            samples = trimmed(_read(path), threshold=0.02) if path.exists() else None
            if samples is not None:
                sentence = request.sentence
                clips.append(Clip(samples, sentence.text, sentence.language, request.label, sentence.translation))
        return clips


# ---- what is said, in which voice


def _draw(sentence: Callable[[], Sentence], held_out: bool) -> Sentence:
    return next(s for s in iter(sentence, None) if grammar.held_out(s.text) == held_out)


@cache
def _variants() -> list[str]:
    """espeak-ng's voice variants for training."""
    files = [line.split("!v/")[1].split()[0] for line in _output(["espeak-ng", "--voices=variant"]).splitlines()[1:]]
    return [name for name in files if name not in LEFT_OUT and name not in TEST_VARIANTS]


def _by_espeak(sentence: Sentence, accents: list[str], variants: list[str], rng: random.Random) -> Request:
    voice = rng.choice(accents)
    if rng.random() < 0.92:
        voice += f"+{rng.choice(variants)}"
    pause = rng.choice([0, 0, 0, 0, 1, 3])
    return Request(sentence, "espeak", voice, rng.uniform(0.83, 1.45), rng.uniform(15, 85), pause)


def _by_flite(sentence: Sentence, voice: str, rng: random.Random, own_pitch: bool = False) -> Request:
    # Other pitches make more voices out of few.
    lowest, highest = (120, 235) if voice == "slt" else (75, 150)
    pitch = None if own_pitch or rng.random() < 0.3 else rng.uniform(lowest, highest)
    return Request(sentence, "flite", voice, rng.uniform(0.8, 1.35), pitch)


def _by_festival(sentence: Sentence, voice: str, rng: random.Random) -> Request:
    other_pitch = voice == "kal_diphone" and rng.random() < 0.75
    return Request(sentence, "festival", voice, rng.uniform(0.8, 1.3), rng.uniform(80, 180) if other_pitch else None)


def _english(rng: random.Random) -> Request:
    sentence = _draw(lambda: grammar.english(rng), held_out=False)
    engine = rng.choices(["espeak", "flite", "festival"], [55, 27, 18])[0]
    if engine == "espeak":
        return _by_espeak(sentence, ACCENTS, _variants(), rng)
    if engine == "flite":
        return _by_flite(sentence, rng.choice(["slt"] * 3 + ["awb"] * 3 + ["kal16"] * 2 + ["kal"]), rng)
    return _by_festival(sentence, rng.choice(["cmu_us_slt_arctic_hts", "kal_diphone"]), rng)


def _other(language: str, variants: list[str], held_out: bool, rng: random.Random) -> Request:
    sentence = _draw(lambda: grammar.other(language, rng), held_out)
    accents = ["de"] if language == "de" else ["es", "es-419"]
    return Request(
        sentence,
        "espeak",
        f"{rng.choice(accents)}+{rng.choice(variants)}",
        rng.uniform(0.83, 1.45),
        rng.uniform(15, 85),
    )


def _test_seen(rng: random.Random) -> Request:
    sentence = _draw(lambda: grammar.english(rng), held_out=True)
    engine = rng.choices(["espeak", "flite", "festival"], [60, 30, 10])[0]
    if engine == "espeak":
        return _by_espeak(sentence, ACCENTS, _variants(), rng)
    if engine == "flite":
        return _by_flite(sentence, rng.choice(["slt", "awb", "kal16"]), rng, own_pitch=True)
    return _by_festival(sentence, "cmu_us_slt_arctic_hts", rng)


def _test_other(language: str, rng: random.Random) -> Request:
    return _other(language, _variants() if rng.random() < 0.6 else TEST_VARIANTS, True, rng)


def _held_out_english(rng: random.Random) -> Sentence:
    return _draw(lambda: grammar.english(rng), held_out=True)


# Training clips, then test clips: sentences held out, in voices trained on ("seen") and voices that are not.
KINDS: dict[str, Callable[[random.Random], Request]] = {
    "english": _english,
    "other": lambda rng: _other(rng.choice(["de", "es"]), _variants(), False, rng),
    "test-seen": _test_seen,
    "test-rms": lambda rng: _by_flite(_held_out_english(rng), "rms", rng, own_pitch=True),
    "test-ked": lambda rng: _by_festival(_held_out_english(rng), "ked_diphone", rng),
    "test-variants": lambda rng: _by_espeak(_held_out_english(rng), ACCENTS, TEST_VARIANTS, rng),
    "test-german": lambda rng: _test_other("de", rng),
    "test-spanish": lambda rng: _test_other("es", rng),
}


# ---- the programs


def _espeak(request: Request, path: Path) -> list[str | Path]:
    speed = round(175 / request.stretch)  # words a minute
    options = ["-v", request.voice, "-s", str(speed), "-p", f"{request.pitch:.0f}", "-g", str(request.pause)]
    return ["espeak-ng", *options, "-w", path, request.sentence.text]


def _flite(request: Request, path: Path) -> list[str | Path]:
    options = ["-voice", request.voice, "--setf", f"duration_stretch={request.stretch:.3f}"]
    if request.pitch:
        options += ["--setf", f"int_f0_target_mean={request.pitch:.1f}"]
    return ["flite", *options, "-t", request.sentence.text, "-o", path]


def _festival(request: Request, path: Path) -> str:
    # Choosing the voice anew resets the pitch of the sentence before.
    lines = [f"(voice_{request.voice})"]
    if request.pitch:
        target = f"(target_f0_mean {request.pitch:.0f}) (target_f0_std {request.pitch * 0.14:.0f})"
        lines.append(f"(set! int_lr_params '({target} (model_f0_mean 170) (model_f0_std 34)))")
    lines += [
        f"(Parameter.set 'Duration_Stretch {request.stretch:.3f})",
        f'(utt.save.wave (utt.synth (Utterance Text "{request.sentence.text}")) "{path}" \'riff)',
    ]
    return "\n".join(lines)


def _read(path: Path) -> Samples:
    samples, rate = soundfile.read(path, dtype="float32")
    resampled: Samples = soxr.resample(samples, rate, RATE)
    return resampled


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
