"""How cores are shared: by counting, or by a measurement that is remembered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from whisperlib import tuning


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "whisperlib"


class Stopwatch:
    """Stands in for a machine: one request takes 1 s on one thread, and each further thread adds `gain` of one."""

    def __init__(self, gain: float) -> None:
        self.gain = gain
        self.asked: list[tuple[int, int]] = []

    def __call__(self, threads: int, states: int) -> float:
        self.asked.append((threads, states))
        return 1.0 / (1.0 + self.gain * (threads - 1))


@pytest.mark.parametrize(
    ("cores", "threads", "concurrency", "expected"),
    [
        (1, None, None, (1, 1)),
        (2, None, None, (2, 1)),
        (16, None, None, (8, 2)),
        (16, 2, None, (2, 8)),
        (4, None, 2, (2, 2)),
        (2, None, 8, (1, 8)),
        (2, 8, 8, (8, 8)),
    ],
)
def test_by_cores(cores: int, threads: int | None, concurrency: int | None, expected: tuple[int, int]) -> None:
    plan = tuning.by_cores(cores, threads, concurrency)
    assert (plan.threads, plan.concurrency) == expected
    assert plan.seconds == {}


@pytest.mark.parametrize(("cores", "tried"), [(1, (1,)), (2, (1, 2)), (6, (1, 3, 6)), (64, (1, 2, 4, 8))])
def test_the_most_threads_and_halves_of_them_are_tried(cores: int, tried: tuple[int, ...]) -> None:
    assert tuning.candidates(cores) == tried


@pytest.mark.parametrize(
    ("gain", "expected"),
    [
        (1.0, (8, 1)),  # every thread is worth a core: one request gets them all
        (0.02, (1, 8)),  # threads that do not help serve other requests
    ],
)
def test_as_many_threads_as_pay(gain: float, expected: tuple[int, int]) -> None:
    plan = tuning.measure(8, ["a machine"], Stopwatch(gain))
    assert (plan.threads, plan.concurrency) == expected
    assert plan.reason.startswith("measured, by threads: 1: 1.000 s, 2: ")


def test_it_is_known_after_one_measurement_for_the_same_facts_and_cores() -> None:
    assert tuning.known(2, ["cpu", "build"]) is None
    watch = Stopwatch(1.0)
    measured = tuning.measure(2, ["cpu", "build"], watch)
    assert watch.asked == [(1, 2), (1, 2), (2, 1), (2, 1)]
    known = tuning.known(2, ["cpu", "build"])
    assert known
    assert (known.threads, known.concurrency, known.seconds) == (2, 1, measured.seconds)
    assert known.reason == measured.reason.replace("measured", "remembered")
    assert tuning.known(2, ["cpu", "another build"]) is None
    assert tuning.known(4, ["cpu", "build"]) is None


@pytest.mark.parametrize(
    ("cores", "asked", "reason"),
    [
        (2, {"threads": 1}, "threads set; 2 cores may be used"),
        (2, {"concurrency": 1}, "concurrency set; 2 cores may be used"),
        (2, {"threads": 1, "concurrency": 1}, "threads and concurrency set; 2 cores may be used"),
        (2, {"may_measure": False}, "2 cores may be used"),
        (1, {}, "1 cores may be used"),
    ],
)
def test_what_needs_no_measurement(cores: int, asked: dict[str, Any], reason: str) -> None:
    plan = tuning.known(cores, [], **asked)
    assert plan
    assert plan.reason == reason


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"2": "x"}', '{"2": 0, "1": 1}', '{"2": 1}'])
def test_what_cannot_be_read_is_not_known(cache: Path, damage: str) -> None:
    tuning.measure(2, [], Stopwatch(1.0))
    assert tuning.known(2, [])
    (file,) = cache.glob("threads-*.json")
    file.write_text(damage)
    assert tuning.known(2, []) is None


def test_a_cache_that_cannot_be_written_costs_nothing_else(cache: Path) -> None:
    cache.write_text("a file where the directory should be")
    assert tuning.measure(2, [], Stopwatch(1.0)).threads == 2
    assert cache.read_text().startswith("a file")
