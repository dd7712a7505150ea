"""Cuts long speech into windows that can be transcribed apart from one another, at pauses.

Pure arithmetic on speech probabilities. Positions are samples at 16 kHz of the original audio; how long a window is
counts speech only, as the pauses between regions are cut out of it.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from whisperlib.options import VadOptions
from whisperlib.pcm import SAMPLE_RATE
from whisperlib.speech import SpeechRegion, end_threshold

ENOUGH_SAMPLES = SAMPLE_RATE // 4  # to the nearest speech; with more of a pause a cut is no better

Window = tuple[SpeechRegion, ...]


def cut(
    regions: Sequence[SpeechRegion],
    probabilities: npt.NDArray[np.float32],
    frame_samples: int,
    options: VadOptions,
    longest: int,
) -> tuple[Window, ...]:
    """Share the regions out to windows of at most `longest` samples of speech, in order, with nothing left out.

    `probabilities`, shape (frames,), 0 to 1, are those that the regions were found in, `frame_samples` apart. A cut
    lies in the second half of the window before it: in the last pause that leaves a quarter of a second on both
    sides, or else in the longest one. Where nobody pauses, it is the frame that is least like speech of the window's
    last sixth. No window is shorter than a sixth of `longest`, unless it is the only one.
    """
    axis = _Axis(regions)
    pauses = _pauses(regions, probabilities, frame_samples, options)
    cuts = [axis.starts[0]] if regions else []
    begin = 0
    while axis.n_packed - begin > longest:
        last = min(begin + longest, axis.n_packed - longest // 6)
        low, high = axis.original(begin + longest // 2, after_gap=False), axis.original(last, after_gap=True)
        position = _in_pause(pauses, low, high)
        if position is None:
            position = _least_like_speech(probabilities, frame_samples, high - longest // 6, high)
        cuts.append(position)
        begin = axis.packed(position)
    bounds = [*cuts, axis.ends[-1]] if regions else []
    return tuple(axis.between(first, last) for first, last in itertools.pairwise(bounds))


class _Axis:
    """Maps positions of the original audio to those with the pauses between regions cut out, and back."""

    def __init__(self, regions: Sequence[SpeechRegion]) -> None:
        self.starts = [region.start for region in regions]
        self.ends = [region.end for region in regions]
        lengths = [region.end - region.start for region in regions]
        *self._packed_starts, self.n_packed = np.cumsum([0, *lengths]).tolist()

    def packed(self, position: int) -> int:
        index = bisect_right(self.starts, position) - 1
        return int(self._packed_starts[index]) + min(position, self.ends[index]) - self.starts[index]

    def original(self, packed: int, *, after_gap: bool) -> int:
        """Where two regions meet, `after_gap` takes the start of the second."""
        index = (bisect_right if after_gap else bisect_left)(self._packed_starts, packed) - 1
        return self.starts[index] + packed - int(self._packed_starts[index])

    def between(self, first: int, last: int) -> Window:
        inside = range(bisect_right(self.ends, first), bisect_left(self.starts, last))
        return tuple(SpeechRegion(max(self.starts[i], first), min(self.ends[i], last)) for i in inside)


def _pauses(
    regions: Sequence[SpeechRegion], probabilities: npt.NDArray[np.float32], frame_samples: int, options: VadOptions
) -> npt.NDArray[np.int64]:
    """Return the start and end of every pause, shape (pauses, 2); what lies between two regions belongs to one."""
    quiet = probabilities < end_threshold(options)
    for before, after in itertools.pairwise(regions):
        quiet[-(-before.end // frame_samples) : after.start // frame_samples] = True
    edges = np.flatnonzero(np.diff(quiet, prepend=False, append=False))
    return edges.reshape(-1, 2).astype(np.int64) * frame_samples


def _in_pause(pauses: npt.NDArray[np.int64], low: int, high: int) -> int | None:
    """Find the best place from `low` to `high` that has silence on both sides."""
    starts, ends = pauses.T
    positions = np.clip((starts + ends) // 2, low, high)
    room = np.minimum(positions - starts, ends - positions)
    if not len(room) or room.max() <= 0:
        return None
    room = np.minimum(room, ENOUGH_SAMPLES)
    return int(positions[room == room.max()].max())


def _least_like_speech(probabilities: npt.NDArray[np.float32], frame_samples: int, low: int, high: int) -> int:
    first, last = -(-low // frame_samples), high // frame_samples
    from_the_end = int(np.argmin(probabilities[first:last][::-1]))
    return (last - from_the_end) * frame_samples - frame_samples // 2
