"""Speech regions, packing, and the way back to the original times."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import numpy as np
import pytest

from whisperlib.options import VadOptions
from whisperlib.pcm import SAMPLE_RATE, Samples
from whisperlib.speech import SpeechRegion, Timeline, find_regions, pack

WINDOW = 512
FRAME = WINDOW / SAMPLE_RATE  # seconds
EXACT = VadOptions(threshold=0.5, min_speech_seconds=0, min_silence_seconds=0, pad_seconds=0)


def regions_of(
    frames: str | list[float], options: VadOptions = EXACT, n_samples: int | None = None
) -> list[tuple[int, int]]:
    """Regions in frames. In a string `#` is 0.9, `~` 0.4 (between the two thresholds), `.` 0.1."""
    values = [{"#": 0.9, "~": 0.4, ".": 0.1}[mark] for mark in frames] if isinstance(frames, str) else frames
    n = len(values) * WINDOW if n_samples is None else n_samples
    found = find_regions(np.array(values, np.float32), n, WINDOW, options)
    return [(region.start, region.end) for region in found]


def frames(*bounds: tuple[int, int]) -> list[tuple[int, int]]:
    return [(start * WINDOW, end * WINDOW) for start, end in bounds]


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ("", []),
        ("....", []),
        ("~~~~", []),  # never reaches the threshold
        ("####", [(0, 4)]),
        ("..##..", [(2, 4)]),
        ("#....#", [(0, 1), (5, 6)]),
        ("..#~~#..", [(2, 6)]),  # hysteresis: 0.4 does not end it
        ("..#~~..", [(2, 5)]),
        ("~~#~~~", [(2, 6)]),  # it starts at the threshold, not before
        ("#.#", [(0, 1), (2, 3)]),
    ],
)
def test_thresholds(marks: str, expected: list[tuple[int, int]]) -> None:
    assert regions_of(marks) == frames(*expected)


def test_the_thresholds_themselves() -> None:
    # 0.5 starts, 0.34375 (below 0.35) ends, 0.359375 does not; all are exact in float32.
    assert regions_of([0.5]) == frames((0, 1))
    assert regions_of([0.49]) == []
    assert regions_of([0.5, 0.359375, 0.34375]) == frames((0, 2))
    # A low threshold still has an end: 0.05 - 0.15 is negative, and no probability is below that.
    low = EXACT.replace(threshold=0.05)
    assert regions_of([0.0625, 0.015625, 0.0, 0.0625], low) == frames((0, 2), (3, 4))


def test_pauses_shorter_than_the_minimum_do_not_end_a_stretch() -> None:
    options = EXACT.replace(min_silence_seconds=3 * FRAME)
    assert regions_of("##..##", options) == frames((0, 6))
    assert regions_of("##...##", options) == frames((0, 2), (5, 7))
    assert regions_of("##.~.##", options) == frames((0, 7))  # it stayed below for one frame at a time
    assert regions_of("##..", options) == frames((0, 2))  # the pause at the end is not speech


def test_short_stretches_are_dropped() -> None:
    options = EXACT.replace(min_speech_seconds=2 * FRAME)
    assert regions_of("#..##..#~.#", options) == frames((3, 5), (7, 9))
    assert regions_of("....#", options) == []
    assert regions_of("...##", options) == frames((3, 5))


def test_padding_is_cut_at_the_ends_and_joins_neighbours() -> None:
    options = EXACT.replace(pad_seconds=2 * FRAME)
    assert regions_of("......#......", options) == frames((4, 9))
    assert regions_of("#.....#", options) == frames((0, 3), (4, 7))
    assert regions_of("#....#", options) == frames((0, 6))  # they touch
    assert regions_of("#...#", options) == frames((0, 5))  # they overlap
    # What is too short on its own stays dropped: padding comes after.
    assert regions_of("...#...", options.replace(min_speech_seconds=2 * FRAME)) == []


def test_a_partial_last_frame() -> None:
    assert regions_of("..#", n_samples=2 * WINDOW + 7) == [(2 * WINDOW, 2 * WINDOW + 7)]
    assert regions_of("#", n_samples=1) == [(0, 1)]
    assert regions_of("#.", n_samples=WINDOW + 7) == [(0, WINDOW)]
    padded = EXACT.replace(pad_seconds=10 * FRAME)
    assert regions_of("#.", padded, n_samples=WINDOW + 7) == [(0, WINDOW + 7)]


def test_seconds() -> None:
    region = SpeechRegion(8_000, 24_000)
    assert (region.start_seconds, region.end_seconds) == (0.5, 1.5)


def cases() -> Iterator[tuple[Samples, int, VadOptions]]:
    """Seeded walks between silence and speech, in steps that float32 holds exactly."""
    rng = random.Random(20_260_101)
    for _ in range(300):
        level, walk = rng.random(), []
        for _ in range(rng.randrange(1, 120)):
            level = min(max(level + rng.uniform(-0.35, 0.35), 0.0), 1.0)
            walk.append(round(level * 64) / 64)
        options = VadOptions(
            threshold=rng.choice([0.25, 0.5, 0.75]),
            min_speech_seconds=FRAME * rng.randrange(5),
            min_silence_seconds=FRAME * rng.randrange(12),
            pad_seconds=FRAME * rng.choice([0, 0, 0.3, 1, 2.5, 6]),
        )
        yield np.array(walk, np.float32), len(walk) * WINDOW - rng.randrange(WINDOW), options


def runs(mask: list[bool]) -> list[tuple[int, int]]:
    """Bounds of the stretches of True."""
    edges = [i for i, (a, b) in enumerate(itertools.pairwise([False, *mask, False])) if a != b]
    return list(zip(edges[::2], edges[1::2], strict=True))


def test_regions_are_ordered_disjoint_and_inside() -> None:
    seen = 0
    for probabilities, n, options in cases():
        found = find_regions(probabilities, n, WINDOW, options)
        assert all(0 <= region.start < region.end <= n for region in found)
        assert all(before.end < after.start for before, after in itertools.pairwise(found))
        seen += len(found)
    assert seen > 300


def test_regions_cover_all_that_is_loud_and_long_enough() -> None:
    for probabilities, n, options in cases():
        found = find_regions(probabilities, n, WINDOW, options)
        pad = round(options.pad_seconds * SAMPLE_RATE)
        for first, last in runs([p >= options.threshold for p in probabilities.tolist()]):
            start, end = first * WINDOW, min(last * WINDOW, n)
            if end - start >= options.min_speech_seconds * SAMPLE_RATE:
                low, high = max(0, start - pad), min(n, end + pad)
                assert any(region.start <= low and high <= region.end for region in found), (first, last)


def test_regions_begin_and_end_a_padding_away_from_a_change() -> None:
    for probabilities, n, options in cases():
        pad = round(options.pad_seconds * SAMPLE_RATE)
        for region in find_regions(probabilities, n, WINDOW, options):
            if region.start > 0:
                frame, odd = divmod(region.start + pad, WINDOW)
                assert odd == 0
                assert probabilities[frame] >= options.threshold
            if region.end < n:
                frame, odd = divmod(region.end - pad, WINDOW)
                assert odd == 0
                assert probabilities[frame] < options.threshold - 0.15 <= probabilities[frame - 1]


def test_regions_leave_no_long_pause_inside() -> None:
    for probabilities, n, options in cases():
        found = find_regions(probabilities, n, WINDOW, options.replace(pad_seconds=0.0))
        for first, last in runs([p < options.threshold - 0.15 for p in probabilities.tolist()]):
            if last - first >= max(1, options.min_silence_seconds / FRAME):
                middle = (first + 0.5) * WINDOW
                assert not any(region.start < middle < region.end for region in found)


def some_regions(rng: random.Random, n: int = 3000) -> list[SpeechRegion]:
    edges = sorted(rng.sample(range(n + 1), 2 * rng.randrange(1, 9)))
    return [SpeechRegion(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def test_packing_joins_the_regions_end_to_end() -> None:
    rng = random.Random(2)
    samples = np.arange(3000, dtype=np.float32)
    for _ in range(50):
        regions = some_regions(rng)
        packed, timeline = pack(samples, regions)
        wanted = [i for region in regions for i in range(region.start, region.end)]
        assert packed.tolist() == wanted
        assert packed.dtype == np.float32
        assert timeline.n_packed == len(packed) == sum(region.end - region.start for region in regions)
        assert timeline.regions == tuple(regions)


@pytest.mark.parametrize("bounds", [(0, 3000), (5, 6), (100, 2900)])
def test_one_region_is_not_copied(bounds: tuple[int, int]) -> None:
    samples = np.arange(3000, dtype=np.float32)
    packed, _ = pack(samples, [SpeechRegion(*bounds)])
    assert np.shares_memory(packed, samples)
    assert packed.flags.c_contiguous
    assert packed.tolist() == list(range(*bounds))


def test_every_sample_maps_back_to_its_place() -> None:
    rng = random.Random(3)
    samples = np.arange(3000, dtype=np.float32)
    for _ in range(20):
        packed, timeline = pack(samples, some_regions(rng))
        for position, original in enumerate(packed.tolist()):
            # A sample starts where it is and ends where the next one would start.
            start, end = (
                timeline.start_seconds(position / SAMPLE_RATE),
                timeline.end_seconds((position + 1) / SAMPLE_RATE),
            )
            assert start * SAMPLE_RATE == pytest.approx(original, abs=1e-6)
            assert end * SAMPLE_RATE == pytest.approx(original + 1, abs=1e-6)


def test_at_a_cut_starts_go_on_and_ends_stay() -> None:
    # Speech at 1 to 3 s and at 10 to 12 s: the cut is at 2 s of the packed audio.
    timeline = Timeline([SpeechRegion(16_000, 48_000), SpeechRegion(160_000, 192_000)])
    assert timeline.start_seconds(2.0) == 10.0
    assert timeline.end_seconds(2.0) == 3.0
    assert timeline.span(1.5, 2.0) == (2.5, 3.0)
    assert timeline.span(2.0, 2.5) == (10.0, 10.5)
    assert timeline.span(1.5, 2.5) == (2.5, 10.5)
    assert timeline.span(2.0, 2.0) == (10.0, 10.0)
    # Rounding of the cut by less than half a sample does not change its side.
    part = 0.4 / SAMPLE_RATE
    assert (timeline.start_seconds(2.0 - part), timeline.end_seconds(2.0 + part)) == (10.0, 3.0)
    assert timeline.start_seconds(2.0 + part) == pytest.approx(10.0 + part)
    assert timeline.end_seconds(2.0 - part) == pytest.approx(3.0 - part)
    # A whole sample does.
    assert timeline.start_seconds(2.0 - 1 / SAMPLE_RATE) == pytest.approx(3.0, abs=1e-4)
    assert timeline.end_seconds(2.0 + 1 / SAMPLE_RATE) == pytest.approx(10.0, abs=1e-4)


def test_times_outside_are_held_at_the_ends() -> None:
    timeline = Timeline([SpeechRegion(16_000, 48_000), SpeechRegion(160_000, 192_000)])
    assert timeline.span(-1.0, 99.0) == (1.0, 12.0)
    assert timeline.start_seconds(4.0) == timeline.end_seconds(4.0) == 12.0
    assert timeline.span(-2.0, -1.0) == (1.0, 1.0)


def test_mapping_never_steps_back() -> None:
    rng = random.Random(5)
    for _ in range(50):
        timeline = Timeline(some_regions(rng))
        n = timeline.n_packed
        times = sorted([rng.uniform(-5, n + 5) / SAMPLE_RATE for _ in range(300)] + [i / SAMPLE_RATE for i in range(n)])
        for mapped in (list(map(timeline.start_seconds, times)), list(map(timeline.end_seconds, times))):
            assert mapped == sorted(mapped)
        low, high = timeline.regions[0].start_seconds, timeline.regions[-1].end_seconds
        for one, other in zip(times, rng.sample(times, len(times)), strict=True):
            start, end = timeline.span(one, other)  # even where the engine's end is before its start
            assert low <= start <= end <= high
