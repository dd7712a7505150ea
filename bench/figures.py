"""From answers to figures and ratios."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from bench import engines
from bench.cases import Outcome, Series

Figures = dict[str, Any]


def of_series(series: Series) -> Figures:
    """Return what one engine did in one trial; medians over the rounds.

    `median_seconds` and `worst_seconds` are a client's latency, `real_time_factor` is that per second of audio,
    `throughput` is seconds of audio done in a second with all clients, `cpu_per_audio_second` has no unit.
    Memory is bytes: the most there ever was, and what stays after the last answer.
    """
    answers, audio = series.answers, series.trial.request.seconds
    seconds = [seconds for answer in answers for seconds in answer.seconds]
    median, done = statistics.median(seconds), audio * series.trial.clients
    stages = {name: statistics.median(answer.stages[name] for answer in answers) for name in answers[0].stages}
    return {
        "rounds": len(answers),
        "median_seconds": median,
        "best_seconds": min(seconds),
        "worst_seconds": max(seconds),
        "real_time_factor": median / audio,
        "throughput": done / statistics.median(answer.wall_seconds for answer in answers),
        "cpu_seconds": statistics.median(answer.cpu_seconds for answer in answers),
        "cpu_per_audio_second": statistics.median(answer.cpu_seconds for answer in answers) / done,
        "peak_bytes": max(answer.peak_bytes for answer in answers),
        "steady_bytes": answers[-1].resident_bytes,
        "text": " ".join(answers[-1].text.split()),
        **({"stages": stages} if stages else {}),
    }


def of_outcome(outcome: Outcome) -> dict[str, Any]:
    """Return figures by setting and engine, ratios of ours to each other engine, and what was left out."""
    figures = {
        setting: {engine: of_series(series) for engine, series in by_engine.items()}
        for setting, by_engine in outcome.series.items()
    }
    return {
        "versions": outcome.versions,
        "left_out": outcome.left_out,
        "notes": [*outcome.notes, *over_quiet(figures)],
        "figures": figures,
        "facts": outcome.facts,
        "ratios": {setting: ratios(by_engine) for setting, by_engine in figures.items()},
    }


def over_quiet(settings: dict[str, dict[str, Figures]]) -> Iterator[str]:
    """Add to each engine's other figures what they are in medians of "quiet", if that is there; yield that in words."""
    quiet = settings.get("quiet", {})
    for setting, by_engine in settings.items():
        for engine in (engine for engine in by_engine if setting != "quiet" and engine in quiet):
            one, alone = by_engine[engine], quiet[engine]["median_seconds"]
            median, worst = one["median_seconds"] / alone, one["worst_seconds"] / alone
            one |= {"median_over_quiet": median, "worst_over_quiet": worst}
            yield f"{engine} {setting}: median {median:.1f} and worst {worst:.1f} times the quiet median"


def ratios(figures: dict[str, Figures]) -> dict[str, dict[str, float]]:
    """Return ours over theirs, below 1 where ours is less, by pair: of latency, CPU and peak memory."""
    return {
        f"{ours} : {theirs}": {
            name: figures[ours][name] / figures[theirs][name]
            for name in ("median_seconds", "best_seconds", "cpu_seconds", "peak_bytes")
            if figures[theirs][name]
        }
        for ours in figures
        if ours in engines.OURS
        for theirs in figures
        if theirs not in engines.OURS
    }
