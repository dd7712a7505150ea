"""Times the stages of one of our requests from what the adapter calls anyway, so that nothing of it is changed.

`progress` is called before each 30 s window, and the cancel token is looked at after the encoder (which computes the
cross-attention's keys and values too), after the prompt, and after every decoder step.
"""

from __future__ import annotations

import time

from whisperlib import CancelToken
from whisperlib.results import Timings

BEGINNING_SECONDS = 0.002  # looks this soon after a window's beginning are made before the encoder runs


class _Watched(CancelToken):
    """A token that notes when it was looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.looks: list[float] = []

    @property
    def cancelled(self) -> bool:
        self.looks.append(time.monotonic())
        return False


class Stopwatch:
    """For one request: hand `token` and `progress` to it, then ask for the `stages`."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.token = _Watched()
        self._windows: list[float] = []

    def progress(self, _fraction: float) -> None:
        """Note that a window begins, or that the last one ended."""
        self._windows.append(time.monotonic())

    def stages(self, timings: Timings) -> dict[str, float]:
        """Return seconds by stage; call it when the request has ended. `Python` is what no other stage took."""
        total = time.monotonic() - self.started
        stages = {"read audio": timings.decode, "queue": timings.queue, "find speech": timings.vad}
        stages |= split(self.token.looks, self._windows, timings.inference)
        return {**stages, "Python": total - timings.total}


def split(looks: list[float], windows: list[float], inference: float) -> dict[str, float]:
    """Divide `inference` seconds by the times of looks and of windows' beginnings, both in order.

    `state and mel` is what lies before the first window and after the last one.
    """
    spent = {"encode and cross": 0.0, "prompt": 0.0, "decode": 0.0}
    for begin, end in zip(windows, [*windows[1:], float("inf")], strict=True):
        inside = [look for look in looks if begin + BEGINNING_SECONDS < look < end]
        if len(inside) >= 2:
            spent["encode and cross"] += inside[0] - begin
            spent["prompt"] += inside[1] - inside[0]
            spent["decode"] += (end if end < float("inf") else inside[-1]) - inside[1]
    return {"state and mel": inference - sum(spent.values()), **spent}
