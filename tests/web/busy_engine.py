"""An engine that has work until a test lets it end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.web.running_server import wait_until
from whisperlib import assets
from whisperlib.engine import Engine

WAIT_SECONDS = 60.0  # on a busy machine


@contextmanager
def busy(adapter: Engine) -> Iterator[threading.Event]:
    """Hold one of the adapter's slots until the block ends, or the event that it gives is set."""
    held, release = threading.Event(), threading.Event()

    def hold(_fraction: float) -> None:
        held.set()
        release.wait(WAIT_SECONDS)

    with adapter.stream(assets.SAMPLES / "rms_010.flac", progress=hold, cache=False):
        assert held.wait(WAIT_SECONDS)
        try:
            yield release
        finally:
            release.set()
    wait_until(lambda: adapter.workload().running == 0, "the slot is free")
