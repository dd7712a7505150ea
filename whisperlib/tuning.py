"""Shares the cores between states and threads, by a short measurement that is remembered per machine and build."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from whisperlib import system
from whisperlib.binding import Library
from whisperlib.models import ModelFile
from whisperlib.settings import user_cache_path

logger = logging.getLogger(__name__)

MAX_THREADS_PER_STATE = 8  # one state stops scaling there; several states go on
MAX_STATES = 64
# So much slower a request may be if that lets another one run beside it.
WORTH_ANOTHER_STATE = 1.15
ROUNDS = 2  # the faster one counts: noise only ever adds


@dataclass(frozen=True)
class Plan:
    """`concurrency` states of `threads` threads each; `reason` is for people.

    `seconds` maps the numbers of threads that were tried to the time of one request, where that was measured.
    """

    threads: int
    concurrency: int
    reason: str
    seconds: dict[int, float]


def facts(library: Library, model: ModelFile, encoder: str) -> tuple[str, ...]:
    """Return what a measurement holds for, beside the cores: machine, build, model, and what runs the encoder."""
    build = str(library.build.get("key", library.directory))
    return system.machine_id(), build, model.name, model.quantization, str(model.size), encoder


def known(
    cores: int,
    facts: Sequence[str],
    *,
    threads: int | None = None,
    concurrency: int | None = None,
    may_measure: bool = True,
) -> Plan | None:
    """Return the plan that needs no measurement: as given, of one core only, or remembered; None: `measure` it."""
    if threads or concurrency or cores == 1 or not may_measure:
        return by_cores(cores, threads, concurrency)
    seconds = _read(_cache_file(cores, facts))
    return _as_measured(cores, seconds, "remembered") if set(seconds) == set(candidates(cores)) else None


def by_cores(cores: int, threads: int | None = None, concurrency: int | None = None) -> Plan:
    """Fill in what is not given so that threads times states fit `cores`, without a measurement.

    With few cores one request gets them all: two at one thread each take as long as the two in turn.
    """
    given = [name for name, value in (("threads", threads), ("concurrency", concurrency)) if value]
    reason = f"{' and '.join(given)} set; " if given else ""
    threads = threads or max(1, min(MAX_THREADS_PER_STATE, cores // (concurrency or 1)))
    return Plan(threads, concurrency or states(cores, threads), f"{reason}{cores} cores may be used", {})


def measure(cores: int, facts: Sequence[str], run: Callable[[int, int], float]) -> Plan:
    """Choose the fewest threads a state that are about as fast as the best, and as many states as then fit.

    `run` is given a number of threads and of states, runs one request so, and returns its seconds. The answer is
    remembered for `facts`, on which it depends.
    """
    # All rounds of one number before the next: an encoder of OpenVINO's is compiled for each.
    seconds = {n: min(run(n, states(cores, n)) for _ in range(ROUNDS)) for n in candidates(cores)}
    _write(_cache_file(cores, facts), seconds)
    return _as_measured(cores, seconds, "measured")


def _as_measured(cores: int, seconds: dict[int, float], how: str) -> Plan:
    fastest = min(seconds.values())
    threads = min(n for n, took in seconds.items() if took <= WORTH_ANOTHER_STATE * fastest)
    tried = ", ".join(f"{n}: {took:.3f} s" for n, took in sorted(seconds.items()))
    return Plan(threads, states(cores, threads), f"{how}, by threads: {tried}", seconds)


def states(cores: int, threads: int) -> int:
    """Return how many states of so many threads fit the cores."""
    return max(1, min(MAX_STATES, cores // threads))


def candidates(cores: int) -> tuple[int, ...]:
    """Return the numbers of threads that are worth trying: the most that one state can use, and halves of it.

    The fewest come first: the last is mostly the one that is chosen, and then what was made for it is there.
    """
    threads = min(MAX_THREADS_PER_STATE, cores)
    found = []
    while threads:
        found.append(threads)
        threads //= 2
    return tuple(reversed(found))


def _cache_file(cores: int, facts: Sequence[str]) -> Path:
    name = hashlib.sha256("\n".join([str(cores), *facts]).encode()).hexdigest()[:16]
    return user_cache_path() / f"threads-{name}.json"


def _read(path: Path) -> dict[int, float]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return {int(threads): float(seconds) for threads, seconds in known.items() if float(seconds) > 0.0}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write(path: Path, seconds: dict[int, float]) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(json.dumps(seconds), encoding="utf-8")
        scratch.replace(path)
    except OSError as error:
        logger.info("the measurement of the threads is not remembered: %s", error)
        with contextlib.suppress(OSError):
            scratch.unlink()
