"""Marks at known samples, at every offset of a cut: each is told once, in order, at its time in the recording."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whisperlib import WhisperLibraryAdapter, assets, binding, windows
from whisperlib.binding import Callbacks, RawSegment, State, VadContext
from whisperlib.options import VadOptions
from whisperlib.pcm import SAMPLE_RATE, Samples
from whisperlib.speech import SpeechRegion, find_regions

FRAME = VadContext.window_samples  # 32 ms
MARKS_APART = 16 * FRAME
MARK_STEP = 2.0**-15
CLIPS = ("seen_020", "seen_002", "seen_010")
PAUSES = (0, 3, 10, 25, 78)  # frames: up to 2.5 s, of which the detector leaves the middle out


@dataclass(frozen=True)
class Recording:
    """Speech at known places, [start, end) in samples, and what the detector and the cutter make of it.

    `probabilities` has shape (frames,); what lies between two regions is left out as silence.
    """

    speech: list[tuple[int, int]]
    probabilities: Samples
    regions: tuple[SpeechRegion, ...]
    windows: tuple[windows.Window, ...]

    @property
    def at_edges(self) -> list[int]:
        """The two samples on either side of wherever something is cut, as far as they belong to a region."""
        edges = [edge for region in itertools.chain(*self.windows) for edge in (region.start, region.end)]
        places = {edge + offset for edge in edges for offset in (-2, -1, 0, 1)}
        return sorted(place for place in places if any(one.start <= place < one.end for one in self.regions))


@pytest.fixture(scope="module")
def recordings(library_dir: Path, sample: Callable[[str], Samples]) -> dict[int, Recording]:
    """Join stretches of speech of 0.6 to 2.1 s, none with a pause in it, with pauses of one length between them."""
    with VadContext(binding.load(library_dir), assets.VAD_MODEL) as vad:

        def longest_stretch(clip: Samples) -> Samples:
            is_speech = vad.speech_probabilities(clip) >= 0.5
            edges = np.flatnonzero(np.diff(is_speech, prepend=False, append=False)).reshape(-1, 2)
            start, end = FRAME * edges[np.argmax(edges[:, 1] - edges[:, 0])]
            return clip[start:end]

        def join(pause_frames: int) -> Recording:
            pause, parts, speech, position = np.zeros(pause_frames * FRAME, np.float32), [], [], 0
            for stretch in stretches * 15:
                parts += [stretch, pause]
                speech.append((position, position + len(stretch)))
                position += len(stretch) + len(pause)
            probabilities = vad.speech_probabilities(np.concatenate(parts))
            regions = find_regions(probabilities, position, FRAME, VadOptions())
            cut = windows.cut(regions, probabilities, FRAME, VadOptions(), 30 * SAMPLE_RATE)
            return Recording(speech, probabilities, regions, cut)

        stretches = [longest_stretch(sample(name)) for name in CLIPS]
        return {pause: join(pause) for pause in PAUSES}


@pytest.fixture
def recording(recordings: dict[int, Recording], pause: int, monkeypatch: pytest.MonkeyPatch) -> Recording:
    """The recording with these pauses. The detector hears the speech that marks stand for."""
    recording = recordings[pause]
    monkeypatch.setattr(VadContext, "speech_probabilities", lambda *_: recording.probabilities)
    return recording


@pytest.fixture
def n_heard(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have marks heard in place of words; gives how many samples each call was to hear.

    The model cannot be made to hear something at a known sample: its words are as long as they are, and its times
    are rounded to 20 ms. Where a cut falls, what a call is given, and what becomes of its times is real.
    """
    lengths: list[int] = []

    def hear(_: State, arguments: Any, samples: Samples, callbacks: Callbacks) -> None:
        assert callbacks.window
        assert callbacks.segments
        lengths.append(len(samples))
        callbacks.window()
        for place in np.flatnonzero(samples).tolist():
            number = b"%d" % round(float(samples[place]) / MARK_STEP)
            callbacks.segments([RawSegment(place / SAMPLE_RATE, (place + 1) / SAMPLE_RATE, number, 0.0, 0.0, ())])

    monkeypatch.setattr(State, "full", hear)
    return lengths


@pytest.mark.parametrize("chunking", ["parallel", "sequential"])
@pytest.mark.parametrize("pause", PAUSES)
def test_every_mark_is_told_once_and_at_its_time(
    adapter: WhisperLibraryAdapter, recording: Recording, n_heard: list[int], chunking: str
) -> None:
    """A mark is one sample, which holds its number. All move by 32 ms until each stood where the next one began."""
    n_samples = len(recording.probabilities) * FRAME
    moved = [
        [place for place in range(first, n_samples, MARKS_APART) if any(a <= place < b for a, b in recording.speech)]
        for first in range(0, MARKS_APART, FRAME)
    ]
    for places in [*moved, recording.at_edges]:
        samples = np.zeros(n_samples, np.float32)
        samples[places] = MARK_STEP * np.arange(1, len(places) + 1)
        n_heard.clear()
        told = adapter.transcribe(samples, language="en", chunking=chunking).segments
        assert [segment.text for segment in told] == [str(number) for number in range(1, len(places) + 1)]
        starts = [segment.start for segment in told]
        assert starts == pytest.approx([place / SAMPLE_RATE for place in places], abs=0.001)
        assert [segment.end for segment in told] == pytest.approx(starts, abs=0.001)
        assert len(n_heard) == (len(recording.windows) if chunking == "parallel" else 1)
    assert len(recording.windows) > 2


def test_a_cut_is_within_speech_only_where_there_is_no_pause(recordings: dict[int, Recording]) -> None:
    for pause, recording in recordings.items():
        cuts = [(before[-1].end, after[0].start) for before, after in itertools.pairwise(recording.windows)]
        within = [start < before and after < end for before, after in cuts for start, end in recording.speech]
        assert any(within) == (pause == 0), pause
