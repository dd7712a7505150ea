"""Make the micro model anew: clips, training, export, measuring.

What is already there is not done again, so a broken-off run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tools.ggml_file import REPOSITORY

try:
    import torch

    from tools.micro_model import evaluate as measuring
    from tools.micro_model import synthesis, training
    from tools.micro_model.clips import Clip, load_clips
    from tools.micro_model.export import export_model
    from tools.micro_model.human_digits import load_digits
except ModuleNotFoundError as error:
    sys.exit(f"{error.name} not found: {sys.executable} -m pip install -e '.[micro-model]'")

STEPS = ("clips", "tests", "train", "export", "evaluate")

TRAINING = {"english": 20_000, "other": 10_000}
TESTS = {
    "test-seen": 150,
    "test-rms": 60,
    "test-ked": 64,
    "test-variants": 80,
    "test-german": 60,
    "test-spanish": 60,
}


@dataclass(frozen=True)
class Run:
    """Where the work lies and how much of it there is. `scale` 1 is the real thing."""

    folder: Path
    minutes: float
    scale: float
    init: Path | None
    human_digits: Path | None
    jobs: int
    seed: int
    whisper_cli: Path

    @property
    def clips(self) -> Path:
        return self.folder / "clips"

    @property
    def tests(self) -> Path:
        return self.folder / "tests"

    @property
    def model(self) -> Path:
        return self.folder / "ggml-micro-f16.bin"


def clips(run: Run) -> None:
    for kind, count in TRAINING.items():
        _synthesise(run, kind, count)


def tests(run: Run) -> None:
    """Write the test sets: sentences held out, in voices trained on and others, short and long."""
    if (run.tests / "speechless.json").exists():
        return
    rng = np.random.default_rng(run.seed)
    sets: dict[str, list[Clip]] = {}
    for kind, count in TESTS.items():
        _synthesise(run, kind, count)
        sets[kind.removeprefix("test-")] = _load(run, kind)
    for name, spoken in sets.items():
        recordings = measuring.single(spoken, rng)
        measuring.write_set(run.tests, name, recordings)
        if name == "seen":
            measuring.write_set(run.tests, "phone", measuring.phone(recordings[:60]))
    lasting = [measuring.long(sets[name], 75, rng) for name in ("seen", "rms", "variants")]
    measuring.write_set(run.tests, "long", lasting)
    if run.human_digits:
        held_out = load_digits(run.human_digits, test=True)
        measuring.write_set(run.tests, "human", measuring.human(held_out, 80, random.Random(run.seed)))
    measuring.write_set(run.tests, "speechless", measuring.speechless(rng))


def train(run: Run) -> None:
    spoken = [clip for kind in TRAINING for clip in _load(run, kind)]
    digits = load_digits(run.human_digits) if run.human_digits else {}
    print(
        f"training on {len(spoken)} clips, {len(digits)} human speakers; {run.minutes:g} minutes in all",
        flush=True,
    )
    torch.set_num_threads(run.jobs)
    training.train(spoken, digits, run.folder, _options(run))


def export(run: Run) -> None:
    model, table = training.load_averaged(run.folder / "checkpoint.pt")
    export_model(model, table, run.model)
    print(f"{run.model}: {run.model.stat().st_size:,} bytes")


def evaluate(run: Run) -> None:
    if not run.whisper_cli.exists():
        raise synthesis.MissingToolError(f"{run.whisper_cli} not found: run `make native`, or give --whisper-cli")
    for path in sorted(run.tests.glob("*.json")):
        found = measuring.score(run.model, run.tests, measuring.read_recordings(path), run.whisper_cli)
        print(f"{path.stem:12} {found}", flush=True)


def _options(run: Run) -> training.Options:
    options = training.Options(minutes=run.minutes, init=run.init, seed=run.seed)
    if run.scale < 1:  # small steps, so that a few minutes show the losses falling
        options = replace(options, audio_seconds=48.0, report_steps=20)
    return options


def _scaled(run: Run, count: int) -> int:
    return max(8, round(count * run.scale))


def _synthesise(run: Run, kind: str, count: int) -> None:
    wanted = _scaled(run, count)
    if synthesis.missing_shards(kind, wanted, run.clips):
        synthesis.check_tools()
        print(f"speaking {wanted} clips: {kind}", flush=True)
        synthesis.make_clips(kind, wanted, run.clips, run.seed, run.jobs)


def _load(run: Run, kind: str) -> list[Clip]:
    found = load_clips(run.clips.glob(f"{kind}-*.npz"))
    if not found:
        raise FileNotFoundError(f"no {kind} clips in {run.clips}: run the step `clips` first")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.micro_model", description=(__doc__ or "").strip())
    parser.add_argument("--work-dir", type=Path, metavar="DIR", help="(build/micro-model, quick: -quick)")
    parser.add_argument("--minutes", type=float, help="time to train (75; quick: 4)")
    parser.add_argument("--quick", action="store_true", help="a fiftieth of the clips: only to see that it works")
    parser.add_argument("--init", type=Path, metavar="FILE", help="begin with the weights of this ggml f16 file")
    parser.add_argument(
        "--human-digits", type=Path, metavar="PATH", help="folder or tar of the Free Spoken Digit Dataset"
    )
    parser.add_argument("--steps", default=",".join(STEPS), help=f"which of {','.join(STEPS)}, with commas (all)")
    parser.add_argument("--whisper-cli", type=Path, default=measuring.WHISPER_CLI, metavar="FILE")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="cores to use (all); 1 on a busy machine")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    steps = options.steps.split(",")
    if unknown := set(steps) - set(STEPS):
        parser.error(f"no such step: {', '.join(sorted(unknown))}")

    run = Run(
        folder=options.work_dir or REPOSITORY / ("build/micro-model" + "-quick" * options.quick),
        minutes=options.minutes or (4.0 if options.quick else 75.0),
        scale=0.02 if options.quick else 1.0,
        init=options.init,
        human_digits=options.human_digits,
        jobs=options.jobs,
        seed=options.seed,
        whisper_cli=options.whisper_cli,
    )
    run.folder.mkdir(parents=True, exist_ok=True)
    try:
        for step in (clips, tests, train, export, evaluate):
            if step.__name__ in steps:
                step(run)
    except (synthesis.MissingToolError, OSError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
