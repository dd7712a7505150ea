"""Results: values that cannot change, and what is computed from them."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest

from whisperlib.results import LanguageGuess, Segment, Timings, Transcription, Word

ONE, TWO, THREE = Word("one", 0.0, 0.5, 0.9), Word("two", 0.5, 1.0, 0.8), Word("three", 2.0, 2.5, 0.7)
SEGMENTS = (
    Segment(0, 0.0, 1.0, "one two", words=(ONE, TWO)),
    Segment(1, 1.0, 2.0, "…"),
    Segment(2, 2.0, 2.5, "three", words=(THREE,)),
)
RESULT = Transcription("one two … three", SEGMENTS, "en", 4.0, timings=Timings(0.1, 0.2, 0.3, 0.4))


def test_words_of_all_segments_in_order() -> None:
    assert RESULT.words == (ONE, TWO, THREE)
    assert Transcription("", (), None, 0.0).words == ()


def test_timings_and_real_time_factor() -> None:
    assert RESULT.timings.total == pytest.approx(1.0)
    assert RESULT.real_time_factor == pytest.approx(0.25)
    assert Timings().total == 0.0
    assert dataclasses.replace(RESULT, duration=0.0).real_time_factor == 0.0


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Timings)])
def test_every_stage_counts(field: str) -> None:
    assert Timings(**{field: 2.0}).total == 2.0


def test_equality_leaves_the_clock_out() -> None:
    assert dataclasses.replace(RESULT, timings=Timings(9.0)) == RESULT
    changes: dict[str, Any] = {"text": "", "segments": (), "language": None, "duration": 1.0, "model": "x"}
    for name, value in {**changes, "task": "translate", "complete": False}.items():
        assert dataclasses.replace(RESULT, **{name: value}) != RESULT


@pytest.mark.parametrize("value", [ONE, SEGMENTS[0], Timings(), LanguageGuess("en", 0.9), RESULT])
def test_results_are_values(value: object) -> None:
    for name in [field.name for field in dataclasses.fields(value)]:  # type: ignore[arg-type]
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, None)
    assert not hasattr(value, "__dict__")
    assert pickle.loads(pickle.dumps(value)) == value  # noqa: S301
    assert copy.deepcopy(value) == value


def test_defaults() -> None:
    segment = Segment(0, 0.0, 1.0, "a")
    assert (segment.tokens, segment.words, segment.temperature) == ((), (), None)
    result = Transcription("", (), None, 0.0)
    assert (result.task, result.model, result.complete) == ("transcribe", "", True)
    one, other = LanguageGuess("en", 0.9), LanguageGuess("de", 0.8)
    assert one.probabilities == {}
    assert one.probabilities is not other.probabilities
    assert "probabilities" not in repr(LanguageGuess("en", 0.9, {"en": 0.9}))
