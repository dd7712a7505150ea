"""What a process of its own for the model costs: `python -m bench.isolation`.

First what memory is left of a model in this process, and of one in its own, when it is closed. Then both are sent the
same clips in turn. What a request took beyond reading the audio, finding speech and inference is told of each; the
difference is the price.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time

from rich.console import Console
from rich.table import Table

from bench.usage import of_self_and
from whisperlib import TranscribeOptions, Transcription, WhisperLibraryAdapter, assets
from whisperlib.engine import Engine
from whisperlib.errors import WhisperlibError
from whisperlib.isolation import IsolatedAdapter
from whisperlib.settings import Settings

CLIPS = ("seen_020.flac", "rms_010.flac", "long_slt75.flac")
MOST_SECONDS = 0.005  # of the difference
REST_SECONDS = 0.05  # before each request, so that no engine tidies up while the other is timed
OPTIONS = TranscribeOptions(language="en", profile="fast", chunking="sequential", word_timestamps=True)


def measure_time(settings: Settings, n_requests: int) -> bool:
    """Print the time beside the work of each clip; say whether the difference is small enough."""
    table = Table(
        title=f"{settings.model_size}, milliseconds beside reading, detection and inference; {n_requests} each"
    )
    for heading in ("clip", "in this process", "in its own", "difference", "whole request, ratio"):
        table.add_column(heading, justify="right")
    cheap = True
    with WhisperLibraryAdapter(settings=settings) as here, IsolatedAdapter(settings=settings) as there:
        for clip in CLIPS:
            beside: dict[Engine, list[float]] = {here: [], there: []}
            whole: dict[Engine, list[float]] = {here: [], there: []}
            for number in range(n_requests + 1):
                for engine in (here, there) if number % 2 else (there, here):
                    time.sleep(REST_SECONDS)
                    seconds, result = ask(engine, clip)
                    if number:  # the first of each is slower
                        timings = result.timings
                        beside[engine].append(seconds - timings.decode - timings.vad - timings.inference)
                        whole[engine].append(seconds)
            ours, theirs = (statistics.median(beside[engine]) for engine in (here, there))
            cheap &= theirs - ours <= MOST_SECONDS
            ratio = statistics.median(map(float.__truediv__, whole[there], whole[here]))
            table.add_row(clip, *(f"{1e3 * value:.2f}" for value in (ours, theirs, theirs - ours)), f"{ratio:.3f}")
    Console(width=None if sys.stdout.isatty() else 110).print(table)
    return cheap


def measure_memory(settings: Settings) -> None:
    """Print what is resident before, with and after a model, all processes together."""
    table = Table(title=f"{settings.model_size}, resident MB of this process and the engine's")
    for heading in ("", "before", "loaded and used", "closed", "left"):
        table.add_column(heading, justify="right")
    for name, kind in (("process of its own", IsolatedAdapter), ("this process", WhisperLibraryAdapter)):
        before = of_self_and(()).resident_bytes
        engine = kind(settings=settings)
        try:
            ask(engine, CLIPS[-1])
            used = of_self_and(()).resident_bytes
            if engine.config.isolation == "process":
                used += of_self_and((engine.config.process_id,)).resident_bytes
        finally:
            engine.close()
        del engine
        gc.collect()
        closed = of_self_and(()).resident_bytes
        table.add_row(name, *(f"{value / 1e6:.0f}" for value in (before, used, closed, closed - before)))
    Console(width=None if sys.stdout.isatty() else 110).print(table)


def ask(engine: Engine, clip: str) -> tuple[float, Transcription]:
    """Transcribe; return the seconds that it took, too."""
    started = time.perf_counter()
    result = engine.transcribe(assets.SAMPLES / clip, OPTIONS)
    return time.perf_counter() - started, result


def main() -> int:
    """Print the tables; fail where a request takes too much longer."""
    parser = argparse.ArgumentParser(prog="python -m bench.isolation", description=__doc__)
    parser.add_argument("--model", default="micro", help="name or file (micro)")
    parser.add_argument("--requests", type=int, default=50, help="for each clip and engine (50)")
    arguments = parser.parse_args()
    if arguments.requests < 1:
        parser.error("give at least one request")
    try:
        settings = Settings(model_size=arguments.model)
        measure_memory(settings)
        cheap = measure_time(settings, arguments.requests)
    except WhisperlibError as error:
        print(f"isolation: {error}", file=sys.stderr)
        return 1
    if not cheap:
        print(f"isolation: a request takes over {1e3 * MOST_SECONDS:g} ms longer", file=sys.stderr)
    return 0 if cheap else 1


if __name__ == "__main__":
    sys.exit(main())
