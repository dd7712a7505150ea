"""Bounds how long an idle OpenMP thread spins. Runs first, before anything can load an OpenMP runtime.

libgomp's default spins for milliseconds to minutes while a busy neighbour holds the core that it waits for:
a decode then takes 10 to 40 times longer. Waiting passively costs a third when the machine is quiet. A bounded
spin (`GOMP_SPINCOUNT`) keeps both the quiet speed and the fair share.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

SPIN_COUNT = 10_000
# Either of these is the user's own choice of how to wait.
_CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
_RUNTIME = re.compile(r"/(lib(?:gomp|iomp5|omp)[-.\w]*\.so[.\d]*)$")


def loaded_runtimes() -> tuple[str, ...]:
    """File names of the OpenMP runtimes that this process has loaded (Linux; elsewhere empty)."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    return tuple(sorted({match[1] for line in maps.splitlines() if (match := _RUNTIME.search(line))}))


def bound_waiting() -> str | None:
    """Set `GOMP_SPINCOUNT` unless the user chose a way of waiting. Return what hinders it, if anything."""
    chosen = [name for name in _CHOICES if os.environ.get(name)]
    if chosen:
        return None
    # A wheel's own copy bears a hash in its name (libgomp-a34b3233.so.1); ours is loaded beside it.
    earlier = [name for name in loaded_runtimes() if name.startswith("libgomp.so")]
    os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
    if earlier:
        return (
            f"{', '.join(earlier)} was loaded before whisperlib, so its waiting is not bounded and a busy "
            f"machine can slow decoding many times: import whisperlib first, or set GOMP_SPINCOUNT={SPIN_COUNT}"
        )
    return None


HINDRANCE = bound_waiting()
