"""Runs hundreds of mixed requests and draws the process's memory, threads and open files: `make soak`.

Short, silent, cancelled, broken and fallback requests, several at once. Fails where the last quarter uses more
than the first fifty requests left behind.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import Progress

from whisperlib import CancelToken, WhisperLibraryAdapter, assets, binding, system
from whisperlib.errors import (
    AudioError,
    DeadlineExceeded,
    LibraryError,
    ModelError,
    OptionError,
    TranscriptionCancelled,
)

WARM_UP = 50
ALLOWED_GROWTH_BYTES = 8_000_000
BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Usage:
    """Resident bytes, threads and open files of this process at one moment."""

    resident: int
    threads: int
    files: int


def usage() -> Usage:
    """Read the usage now."""
    return Usage(
        system.resident_bytes(),
        len(list(Path("/proc/self/task").iterdir())),
        len(list(Path("/proc/self/fd").iterdir())),
    )


SPEECH = assets.SAMPLES / "seen_020.flac"


def speech(whisper: WhisperLibraryAdapter, seed: int) -> None:
    """Greedy or with beams."""
    _same(whisper.transcribe(SPEECH, beam_size=1 + seed % 5).text, "Call the doctor on Thursday.")


def german(whisper: WhisperLibraryAdapter, _seed: int) -> None:
    """Another language, detected."""
    _same(whisper.transcribe(assets.SAMPLES / "german_001.flac").text, "Rufe fünf drei eins acht an.")


def words(whisper: WhisperLibraryAdapter, _seed: int) -> None:
    """Word timestamps, split segments, a smaller context."""
    whisper.transcribe(SPEECH, word_timestamps=True, max_segment_length=10, audio_ctx=256)


def silence(whisper: WhisperLibraryAdapter, seed: int) -> None:
    """Digital silence, with and without VAD."""
    _same(whisper.transcribe(np.zeros(32_000, np.float32), vad=bool(seed % 2), language="en").text, "")


def noise(whisper: WhisperLibraryAdapter, seed: int) -> None:
    """White noise."""
    _same(whisper.transcribe(np.random.default_rng(seed).normal(0, 0.02, 32_000).astype(np.float32)).text, "")


def cancelled(whisper: WhisperLibraryAdapter, seed: int) -> None:
    """Cancelled somewhere on the way, perhaps too late."""
    token = CancelToken()
    threading.Timer(0.02 * (seed % 5), token.cancel).start()
    with suppress(TranscriptionCancelled):
        whisper.transcribe(SPEECH, cancel=token)


def late(whisper: WhisperLibraryAdapter, seed: int) -> None:
    """A deadline that passes somewhere on the way, or not."""
    with suppress(DeadlineExceeded):
        whisper.transcribe(SPEECH, timeout_seconds=0.01 + 0.02 * (seed % 5))


def broken(whisper: WhisperLibraryAdapter, seed: int) -> None:
    """Bytes that are no audio."""
    with suppress(AudioError):
        whisper.transcribe(random.Random(seed).randbytes(2000))


def fallback(whisper: WhisperLibraryAdapter, _seed: int) -> None:
    """A log probability that nothing reaches: every temperature is tried."""
    whisper.transcribe(SPEECH, language="en", logprob_threshold=0.0, no_speech_threshold=1.0, vad=False)


def stream(whisper: WhisperLibraryAdapter, _seed: int) -> None:
    """Closed after its first segment."""
    with whisper.stream(assets.SAMPLES / "rms_010.flac") as segments:
        next(segments)


KINDS = (speech, german, words, silence, noise, cancelled, late, broken, fallback, stream)


def _same(heard: str, said: str) -> None:
    if heard != said:
        raise AssertionError(f"heard {heard!r} instead of {said!r}")


def soak(requests: int, model: str, concurrency: int) -> list[Usage]:
    """Run the requests in batches of ten and return the usage after each batch."""
    curve: list[Usage] = []
    with (
        WhisperLibraryAdapter(model, concurrency=concurrency, threads=1) as whisper,
        ThreadPoolExecutor(concurrency) as pool,
        Progress(disable=not sys.stderr.isatty()) as progress,
    ):
        task = progress.add_task("requests", total=requests)
        for first in range(0, requests, 10):
            batch = [(KINDS[i % len(KINDS)], i) for i in range(first, min(first + 10, requests))]
            list(pool.map(lambda item: item[0](whisper, item[1]), batch))
            gc.collect()
            binding.release_unused()
            curve.append(usage())
            progress.advance(task, len(batch))
    return curve


def draw(values: list[int]) -> str:
    """Draw values as a row of bars, from their minimum to their maximum."""
    low, high = min(values), max(values)
    return "".join(BARS[(value - low) * (len(BARS) - 1) // max(1, high - low)] for value in values)


def leaks(curve: list[Usage]) -> list[str]:
    """Say what the last quarter uses more than what the first fifty requests left behind."""
    settled = curve[WARM_UP // 10 - 1]
    last = curve[-max(1, len(curve) // 4) :]
    found = []
    if (grown := min(u.resident for u in last) - settled.resident) > ALLOWED_GROWTH_BYTES:
        found.append(f"resident memory grew by {grown / 1e6:.1f} MB")
    if (threads := min(u.threads for u in last) - settled.threads) > 0:
        found.append(f"{threads} threads more")
    if (files := min(u.files for u in last) - settled.files) > 0:
        found.append(f"{files} open files more")
    return found


def main() -> int:
    """Run, print the curve, and return 1 where something grew."""
    parser = argparse.ArgumentParser(prog="python tools/soak.py", description=__doc__)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--model", default="micro")
    parser.add_argument("--concurrency", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.requests < 2 * WARM_UP:
        parser.error(f"--requests {arguments.requests}: give at least {2 * WARM_UP}")
    if arguments.concurrency < 1:
        parser.error(f"--concurrency {arguments.concurrency}: give at least 1")
    try:
        curve = soak(arguments.requests, arguments.model, arguments.concurrency)
    except (ModelError, LibraryError, OptionError) as error:
        parser.error(str(error))
    for name, values in (
        ("resident MB", [u.resident // 1_000_000 for u in curve]),
        ("threads", [u.threads for u in curve]),
        ("open files", [u.files for u in curve]),
    ):
        print(f"{name:12} {draw(values)}  {values[WARM_UP // 10 - 1]} after {WARM_UP}, {values[-1]} at the end")
    found = leaks(curve)
    print("; ".join(found) or "nothing grew")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
