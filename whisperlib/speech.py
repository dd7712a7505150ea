"""Finds speech, cuts the pauses out, and maps times back to the original audio.

Pure arithmetic: speech probabilities come in, regions and a timeline go out. Everything inside is counted in
samples at 16 kHz; seconds appear only in what callers see.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from whisperlib.options import VadOptions
from whisperlib.pcm import SAMPLE_RATE, Samples

# As Silero's get_speech_timestamps, but any frame above the lower threshold ends a pause, which keeps more speech.
HYSTERESIS = 0.15
MIN_END_THRESHOLD = 0.01


@dataclass(frozen=True, slots=True)
class SpeechRegion:
    """A stretch of speech, [start, end) in samples of the original audio."""

    start: int
    end: int

    @property
    def start_seconds(self) -> float:
        """Start in seconds."""
        return self.start / SAMPLE_RATE

    @property
    def end_seconds(self) -> float:
        """End in seconds."""
        return self.end / SAMPLE_RATE


def end_threshold(options: VadOptions) -> float:
    """Return the probability below which a frame belongs to a pause."""
    return max(options.threshold - HYSTERESIS, MIN_END_THRESHOLD)


def find_regions(
    probabilities: npt.NDArray[np.float32], n_samples: int, window_samples: int, options: VadOptions
) -> tuple[SpeechRegion, ...]:
    """Turn frame probabilities, shape (frames,), 0 to 1, into padded, non-overlapping regions in order.

    `window_samples` is the length of a frame; the regions lie within [0, n_samples).
    """
    pad = round(options.pad_seconds * SAMPLE_RATE)
    padded = [
        (max(0, start - pad), min(n_samples, end + pad))
        for start, end in _stretches(probabilities, n_samples, window_samples, options)
    ]
    regions: list[SpeechRegion] = []
    for start, end in padded:
        if regions and start <= regions[-1].end:
            regions[-1] = SpeechRegion(regions[-1].start, end)
        else:
            regions.append(SpeechRegion(start, end))
    return tuple(regions)


def _stretches(
    probabilities: npt.NDArray[np.float32], n_samples: int, window_samples: int, options: VadOptions
) -> list[tuple[int, int]]:
    starts_at, ends_at = options.threshold, end_threshold(options)
    min_silence = round(options.min_silence_seconds * SAMPLE_RATE)
    min_speech = round(options.min_speech_seconds * SAMPLE_RATE)
    stretches: list[tuple[int, int]] = []
    start: int | None = None
    quiet_since: int | None = None
    for frame, probability in enumerate(probabilities.tolist()):
        here = frame * window_samples
        if start is None:
            if probability >= starts_at:
                start, quiet_since = here, None
        elif probability >= ends_at:
            quiet_since = None
        else:
            quiet_since = here if quiet_since is None else quiet_since
            if here + window_samples - quiet_since >= min_silence:
                stretches.append((start, quiet_since))
                start = None
    if start is not None:
        stretches.append((start, n_samples if quiet_since is None else quiet_since))
    return [(first, last) for first, last in stretches if last - first >= min_speech]


class Timeline:
    """Maps times of audio with the pauses cut out to times of the original."""

    def __init__(self, regions: Sequence[SpeechRegion]) -> None:
        self.regions = tuple(regions)
        self._packed_starts: list[int] = []
        position = 0
        for region in self.regions:
            self._packed_starts.append(position)
            position += region.end - region.start
        self.n_packed = position

    def start_seconds(self, packed_seconds: float) -> float:
        """Map the start of something: at a cut it belongs to the region that begins there."""
        return self._map(packed_seconds, at_cut_take_next=True)

    def end_seconds(self, packed_seconds: float) -> float:
        """Map the end of something: at a cut it belongs to the region that ends there."""
        return self._map(packed_seconds, at_cut_take_next=False)

    def span(self, start_seconds: float, end_seconds: float) -> tuple[float, float]:
        """Map a start and an end together; the end is never before the start."""
        start = self.start_seconds(start_seconds)
        return start, max(start, self.end_seconds(end_seconds))

    def _map(self, packed_seconds: float, *, at_cut_take_next: bool) -> float:
        position = min(max(packed_seconds * SAMPLE_RATE, 0.0), float(self.n_packed))
        # A sample is 62 µs; the tolerance keeps a rounded cut on its own side.
        nudge = 0.5 if at_cut_take_next else -0.5
        index = max(0, bisect_right(self._packed_starts, position + nudge) - 1)
        region = self.regions[index]
        inside = min(max(position - self._packed_starts[index], 0.0), region.end - region.start)
        return (region.start + inside) / SAMPLE_RATE


def pack(samples: Samples, regions: Sequence[SpeechRegion]) -> tuple[Samples, Timeline]:
    """Join the regions of `samples` (float32, shape (n,)) end to end, and give the timeline back.

    What stands between two stretches of speech is real audio, the padding of both sides: a cut lies in a
    pause, and no artificial silence is put in. One region that covers everything is not copied.
    """
    timeline = Timeline(regions)
    if len(regions) == 1:
        return samples[regions[0].start : regions[0].end], timeline
    return np.concatenate([samples[region.start : region.end] for region in regions]), timeline
