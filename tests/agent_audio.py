"""What agents bring, raw PCM of any rate and number of channels, and an engine that is busy when they come."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import soxr

from whisperlib import assets
from whisperlib.engine import Engine
from whisperlib.pcm import SAMPLE_RATE, Samples

CLIP, TEXT = "seen_010", assets.sample_text("seen_010.flac")


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so; the test's own time limit ends what never is."""
    while not condition():
        await asyncio.sleep(0.005)


def pcm(samples: Samples, sample_rate: int = SAMPLE_RATE, channels: int = 1) -> bytes:
    """Turn samples of shape (n,) at 16 kHz into interleaved int16; every channel has them."""
    resampled = soxr.resample(samples, SAMPLE_RATE, sample_rate)
    scaled = np.clip(np.rint(resampled * 32_768), -32_768, 32_767).astype("<i2")
    return np.repeat(scaled[:, np.newaxis], channels, axis=1).tobytes()


@contextmanager
def all_slots_taken(adapter: Engine) -> Iterator[None]:
    """Hold every slot of an adapter: its requests stand still inside the engine, until the end."""
    go_on = threading.Event()
    standing = threading.Barrier(adapter.config.concurrency + 1)

    class Standing:
        """A progress callback that stands still at its first call."""

        def __init__(self) -> None:
            self.came = False

        def __call__(self, fraction: float) -> None:
            if not self.came:
                self.came = True
                standing.wait(60)
                go_on.wait(60)

    with ThreadPoolExecutor(adapter.config.concurrency) as pool:
        sample = assets.SAMPLES / f"{CLIP}.flac"
        for _ in range(adapter.config.concurrency):
            pool.submit(adapter.transcribe, sample, language="en", profile="fast", progress=Standing())
        standing.wait(60)
        try:
            yield
        finally:
            go_on.set()
