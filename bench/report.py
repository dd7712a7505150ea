"""What is left of a run: a table for the terminal, `results.json`, a plot, and the table in `docs/performance.md`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

REFERENCE = "whisperlib-balanced"
BEGIN, END = "<!-- figures: make bench -->", "<!-- end of figures -->"
HEADINGS = (
    "setting", "engine", "median s", "best s", "worst s", "RTF", "audio s/s", "CPU s/audio s", "peak MB", "steady MB",
    "balanced : this", "of bests", "of CPU",
)  # fmt: skip
STAGE_HEADINGS = ("setting", "engine", "stage", "ms", "share")


def rows(case: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the cells below `HEADINGS`; `*` after an engine's name: its text is not the reference's."""
    for setting, figures in case["figures"].items():
        reference = figures.get(REFERENCE) or {}
        for engine, one in figures.items():
            ratio = case["ratios"][setting].get(f"{REFERENCE} : {engine}", {})
            yield (
                setting,
                engine + ("*" if reference and _letters(one) != _letters(reference) else ""),
                f"{one['median_seconds']:.2f}",
                f"{one['best_seconds']:.2f}",
                f"{one['worst_seconds']:.2f}",
                f"{one['real_time_factor']:.3f}",
                f"{one['throughput']:.2f}",
                f"{one['cpu_per_audio_second']:.3f}",
                f"{one['peak_bytes'] / 1e6:.0f}",
                f"{one['steady_bytes'] / 1e6:.0f}" if one["steady_bytes"] else "–",
                *(f"{ratio[name]:.2f}" if ratio else "" for name in ("median_seconds", "best_seconds", "cpu_seconds")),
            )


def stage_rows(case: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield (setting, engine, stage, milliseconds, share) where engines told their stages."""
    for setting, figures in case["figures"].items():
        for engine, one in figures.items():
            stages = one.get("stages", {})
            for stage, seconds in stages.items():
                share = seconds / sum(stages.values())
                yield setting, engine, stage, f"{seconds * 1e3:.1f}", f"{share:.1%}"


def tables(name: str, case: dict[str, Any]) -> Iterator[Table]:
    """Yield what a person reads in the terminal."""
    title = f"{name}: {case['model']}, {case['weights']}, {_threads(case)}"
    for headings, cells in ((HEADINGS, rows(case)), (STAGE_HEADINGS, stage_rows(case))):
        table = Table(title=title)
        for heading in headings:
            table.add_column(heading, no_wrap=heading == "engine")
        for row in cells:
            table.add_row(*row)
        if table.row_count:
            yield table


def _letters(figures: dict[str, Any]) -> str:
    return "".join(figures["text"].split())  # engines that split segments put spaces within words


def _threads(case: dict[str, Any]) -> str:
    return f"{case['threads']} threads" if case["threads"] else "threads as each engine chooses"


def merged(path: Path, machine: dict[str, Any], cases: dict[str, Any]) -> dict[str, Any]:
    """Return `cases` with those that `path` has of other names, if they were measured on the same processor."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        same = all(kept["machine"][key] == machine[key] for key in ("cpu", "cores"))
    except (OSError, ValueError, KeyError):
        same = False
    return {"machine": machine, "cases": {**(kept["cases"] if same else {}), **cases}}


def markdown(results: dict[str, Any]) -> str:
    """Return the tables of all cases for the page."""
    machine = results["machine"]
    parts = [f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}."]
    for name, case in results["cases"].items():
        parts.append(f"### {name}")
        rounds = max((one["rounds"] for by_engine in case["figures"].values() for one in by_engine.values()), default=0)
        about = f"{case['model']}, whisper.cpp's files in {case['weights']}, {_threads(case)}, rounds: {rounds}, "
        parts.append(
            about + f"load average {case['load_before']} before. " + " ".join(f"{note}." for note in case["notes"])
        )
        if case["load_before"] > machine["cores"]:
            parts.append("**Other work, or the case before, kept the machine busy: quote ratios, not these seconds.**")
        parts += [
            _table(headings, cells)
            for headings, cells in ((HEADINGS, [*rows(case)]), (STAGE_HEADINGS, [*stage_rows(case)]))
            if cells
        ]
        parts += [f"Left out: {engine}: {reason}" for engine, reason in case["left_out"].items()]
    return "\n\n".join(parts)


def _table(headings: tuple[str, ...], cells: list[tuple[str, ...]]) -> str:
    lines = [headings, tuple("---" for _ in headings), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_page(page: Path, text: str) -> None:
    """Put `text` between the page's markers. Raises ValueError where they are missing."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page}: there is no {BEGIN} … {END} to write between")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def plot(results: dict[str, Any], path: Path) -> None:
    """Draw median latencies, with the best and the worst round, one panel for each setting."""
    import matplotlib as mpl  # noqa: PLC0415 - the tests' environment has none

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "whisperlib"  # the same figures give the same file
    from matplotlib import pyplot  # noqa: PLC0415

    panels = [
        (f"{name}: {setting}", figures)
        for name, case in results["cases"].items()
        for setting, figures in case["figures"].items()
    ]
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(lines, columns, figsize=(6 * columns, 2.6 * lines), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (title, figures) in zip(axes.flat, panels, strict=False):
        medians = [one["median_seconds"] for one in figures.values()]
        spread = [
            [one["median_seconds"] - one["best_seconds"] for one in figures.values()],
            [one["worst_seconds"] - one["median_seconds"] for one in figures.values()],
        ]
        colours = ["#c0504d" if engine.startswith("whisperlib") else "#7f8fa9" for engine in figures]
        axis.barh(list(figures), medians, xerr=spread, color=colours, error_kw={"elinewidth": 0.8})
        axis.invert_yaxis()
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=7)
        axis.set_xlabel("seconds, median; line: best to worst", fontsize=7)
    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(figure)
