"""Compares the adapter with `whisper-cli` spawned for every request: `make bench`.

Both run the same file on the same libraries with the same options, in turn, so that a machine whose speed drifts
treats them alike. The figure to quote is the ratio of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import soundfile
from rich.console import Console
from rich.progress import track
from rich.table import Table

from whisperlib import WhisperLibraryAdapter, assets, audio
from whisperlib.errors import WhisperlibError
from whisperlib.pcm import SAMPLE_RATE, Samples

SECONDS = (2.0, 11.0, 30.0)


def clip(seconds: float) -> Samples:
    """Cut `seconds` of speech from the long sample."""
    return audio.load(assets.SAMPLES / "long_slt75.flac")[: int(seconds * SAMPLE_RATE)]


def timed(run: Callable[[], object]) -> float:
    """Seconds that `run` takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def compare(whisper: WhisperLibraryAdapter, samples: Samples, beam_size: int, rounds: int) -> tuple[float, float]:
    """Median seconds of (ours, whisper-cli) for one clip, in interleaved rounds after a round of warm-up."""
    config = whisper.config
    with tempfile.TemporaryDirectory() as scratch:
        wav = Path(scratch) / "clip.wav"
        soundfile.write(wav, samples, SAMPLE_RATE)
        command = [str(config.library_directory / "whisper-cli"), "-m", str(config.path), "-f", str(wav)]
        command += ["-l", "en", "-t", str(config.threads), "-bs", str(beam_size), "-np"]
        ours, theirs = [], []
        for _ in track(range(rounds + 1), f"{len(samples) / SAMPLE_RATE:.0f} s, beam {beam_size}", transient=True):
            ours.append(timed(lambda: whisper.transcribe(wav, language="en", beam_size=beam_size, vad=False)))
            theirs.append(timed(lambda: subprocess.run(command, check=True, capture_output=True)))
    return statistics.median(ours[1:]), statistics.median(theirs[1:])


def main() -> int:
    """Print a table of medians and ratios."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--model", default="micro", help="name or path of the model (micro)")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (5)")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds {arguments.rounds}: give at least 1")
    try:
        Console().print(measure(arguments.model, arguments.rounds))
    except (WhisperlibError, OSError, subprocess.CalledProcessError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


def measure(model: str, rounds: int) -> Table:
    """Compare at every length, greedy and with five beams."""
    with WhisperLibraryAdapter(model, concurrency=1) as whisper:
        config = whisper.config
        table = Table(title=f"{config.model} {config.compute_type}, {config.device}, {config.threads} threads")
        for heading in ("clip", "beams", "adapter, ms", "whisper-cli spawned, ms", "ratio"):
            table.add_column(heading, justify="right")
        for seconds in SECONDS:
            for beam_size in (1, 5):
                ours, theirs = compare(whisper, clip(seconds), beam_size, rounds)
                table.add_row(
                    f"{seconds:.0f} s",
                    str(beam_size),
                    f"{ours * 1e3:.0f}",
                    f"{theirs * 1e3:.0f}",
                    f"{ours / theirs:.2f}",
                )
    return table


if __name__ == "__main__":
    sys.exit(main())
