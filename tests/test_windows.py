"""Where long speech is cut: at pauses, with nothing left out, whatever the place of the pause."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from whisperlib.options import VadOptions
from whisperlib.pcm import SAMPLE_RATE
from whisperlib.speech import SpeechRegion, Timeline, find_regions
from whisperlib.windows import ENOUGH_SAMPLES, Window, cut

FRAME = 512
LONGEST = 60 * FRAME  # what a cut does depends on proportions; half a second is 15.6 frames
OPTIONS = VadOptions(threshold=0.5, min_speech_seconds=0, min_silence_seconds=2.0, pad_seconds=0.4)
SPEECH, PAUSE = 0.9, 0.1


def n_samples(window: Window) -> int:
    return sum(region.end - region.start for region in window)


def cut_all(probabilities: list[float], longest: int = LONGEST, options: VadOptions = OPTIONS) -> tuple[Window, ...]:
    """Find regions and cut; check what holds for every cut."""
    values = np.array(probabilities, np.float32)
    regions = find_regions(values, len(values) * FRAME, FRAME, options)
    before = values.copy()
    windows = cut(regions, values, FRAME, options, longest)
    assert (values == before).all()
    assert covered(windows) == covered([regions])
    lengths = [n_samples(window) for window in windows]
    assert all(0 < length <= longest for length in lengths)
    assert len(windows) <= 1 or min(lengths) >= longest // 6
    assert all(length >= longest // 2 for length in lengths[:-1])
    edges = [edge for window in windows for region in window for edge in (region.start, region.end)]
    assert edges == sorted(edges)
    return windows


def covered(windows: tuple[Window, ...] | list[tuple[SpeechRegion, ...]]) -> list[tuple[int, int]]:
    """Return what the windows cover, as stretches that do not touch."""
    joined: list[tuple[int, int]] = []
    for region in itertools.chain(*windows):
        if joined and joined[-1][1] == region.start:
            joined[-1] = (joined[-1][0], region.end)
        else:
            joined.append((region.start, region.end))
    return joined


def cuts_of(windows: tuple[Window, ...]) -> list[tuple[int, int]]:
    """Return for every cut where the audio before it ends and where that after it begins."""
    return [(before[-1].end, after[0].start) for before, after in itertools.pairwise(windows)]


def test_nothing_and_what_fits_are_not_cut() -> None:
    assert cut((), np.zeros(9, np.float32), FRAME, OPTIONS, LONGEST) == ()
    regions = (SpeechRegion(5, 5 + LONGEST),)
    assert cut(regions, np.full(70, SPEECH, np.float32), FRAME, OPTIONS, LONGEST) == (regions,)


@pytest.mark.parametrize("length", [1, 2, 5, 16, 24])
@pytest.mark.parametrize("place", range(30, 60))
def test_a_pause_anywhere_in_the_second_half_is_where_it_is_cut(place: int, length: int) -> None:
    values = [SPEECH] * 90
    values[place : place + length] = [PAUSE] * length
    ((end, start),) = cuts_of(cut_all(values))
    assert end == start
    # The window may end within the pause; then it is cut there.
    assert place * FRAME < end < min((place + length) * FRAME, LONGEST + 1)
    middle = (2 * place + length) * FRAME // 2
    assert end == min(middle, LONGEST)


def test_at_every_sample_offset() -> None:
    """Regions may begin at any sample; a pause of known place moves through the window by single samples."""
    values = np.full(100, SPEECH, np.float32)
    values[44:48] = PAUSE
    for offset in range(2 * FRAME + 2):
        regions = (SpeechRegion(offset, 100 * FRAME),)
        first, second = cut(regions, values, FRAME, OPTIONS, LONGEST)
        assert (first, second) == ((SpeechRegion(offset, 46 * FRAME),), (SpeechRegion(46 * FRAME, 100 * FRAME),))
    for longest in range(44 * FRAME + 1, 50 * FRAME):
        (first, *_) = cut((SpeechRegion(0, 100 * FRAME),), values, FRAME, OPTIONS, longest)
        assert first == (SpeechRegion(0, min(longest, 46 * FRAME)),)


def test_of_several_pauses_the_last_that_is_long_enough() -> None:
    enough = -(-2 * ENOUGH_SAMPLES // FRAME)

    def place_of_cut(*pauses: tuple[int, int]) -> int:
        values = [SPEECH] * 200
        for start, length in pauses:
            values[start : start + length] = [PAUSE] * length
        (end, _), *_ = cuts_of(cut_all(values, longest=100 * FRAME))
        return end // FRAME

    assert place_of_cut((55, enough), (75, enough)) == 75 + enough // 2
    assert place_of_cut((52, enough + 8), (80, enough)) == 80 + enough // 2
    assert place_of_cut((55, enough), (80, enough - 4)) == 55 + enough // 2
    assert place_of_cut((60, 3), (70, 5), (80, 2)) == 72
    assert place_of_cut((60, 3), (70, 3)) == 71
    assert place_of_cut((10, enough), (70, 3)) == 71  # one in the first half does not count


def test_a_gap_between_regions_is_the_best_pause() -> None:
    """What is left out between two regions is on nobody's side, and its length counts."""
    values = [SPEECH] * 40 + [PAUSE] * 100 + [SPEECH] * 40
    ((end, start),) = cuts_of(cut_all(values))
    pad = round(0.4 * SAMPLE_RATE)
    assert (end, start) == (40 * FRAME + pad, 140 * FRAME - pad)


def test_without_a_pause_it_is_cut_where_speech_is_least_likely() -> None:
    for place in range(50, 60):
        values = [SPEECH] * 100
        values[place] = 0.6
        values[45] = 0.55  # not near the end
        ((end, _),) = cuts_of(cut_all(values))
        assert end == place * FRAME + FRAME // 2
    ((end, _),) = cuts_of(cut_all([SPEECH] * 100))
    assert end == 59 * FRAME + FRAME // 2


def test_the_last_window_is_not_a_scrap() -> None:
    for n in range(61, 75):
        first, last = cut_all([SPEECH] * n)
        assert n_samples(last) >= 10 * FRAME
        assert n_samples(first) + n_samples(last) == n * FRAME


def test_random_speech() -> None:
    rng = random.Random(11)
    n_cuts = n_in_pauses = 0
    for _ in range(200):
        level, walk = rng.random(), []
        for _ in range(rng.randrange(1, 900)):
            level = min(max(level + rng.uniform(-0.4, 0.4), 0.0), 1.0)
            walk.append(level)
        options = VadOptions(
            threshold=rng.choice([0.25, 0.5, 0.75]),
            min_speech_seconds=rng.choice([0, 0.1]),
            min_silence_seconds=rng.choice([0, 0.1, 2]),
            pad_seconds=rng.choice([0, 0.013, 0.1, 0.4]),
        )
        longest = rng.randrange(20 * FRAME, 300 * FRAME)
        windows = cut_all(walk, longest, options)
        for end, start in cuts_of(windows):
            n_cuts += 1
            n_in_pauses += end != start or walk[end // FRAME] < options.threshold - 0.15
        # Times go back to where they were: window by window, sample by sample.
        for window in windows:
            timeline = Timeline(window)
            assert timeline.n_packed == n_samples(window)
            assert timeline.span(0.0, 1e9) == (window[0].start_seconds, window[-1].end_seconds)
    assert n_cuts > 200
    assert n_in_pauses > 0.8 * n_cuts  # the rest had none in reach
