"""What is left of a run: tables for the terminal, and for each machine `results.json`, a plot and a page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from bench import claims, engines, models
from bench.machine import same, slug

REFERENCE = "whisperlib-balanced"
TOKENS = models.WORDS + 3  # of a window with random weights: the two times and the end of text
BEGIN, END = "<!-- claims: make bench -->", "<!-- end of claims -->"
HEADINGS = (
    "setting", "engine", "median s", "best s", "worst s", "RTF", "audio s/s", "CPU s/audio s", "peak MB", "steady MB",
    "ours : this", "of bests", "of CPU",
)  # fmt: skip
STAGE_HEADINGS = ("setting", "engine", "stage", "ms", "share")
FACT_HEADINGS = ("fact", "of", "value")
WEIGHT_HEADINGS = (
    "type", "file MB", "ms a token, greedy", "ms a token, beam 5", "encode s, ggml", "encode s, OpenVINO",
    "peak MB, ggml", "steady MB, ggml", "peak MB, OpenVINO", "steady MB, OpenVINO", "WER of micro",
)  # fmt: skip


def rows(case: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the cells below `HEADINGS`; `*` after an engine's name: its text is not the reference's."""
    for setting, figures in case["figures"].items():
        name = next((each for each in (REFERENCE, "whisperlib-encoder") if each in figures), "")
        reference = figures.get(name) or {}
        for engine, one in figures.items():
            ratio = case["ratios"][setting].get(f"{name} : {engine}", {})
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


def fact_rows(case: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield (fact, of what, value) of what no request told."""
    for fact, values in case.get("facts", {}).items():
        for name, value in values.items():
            yield fact, name, f"{value:.4f}" if isinstance(value, float) else f"{value:,}"


def weight_rows(case: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the cells below `WEIGHT_HEADINGS`; a token's time is that of prompt and decoder over all its tokens."""
    facts, by_width = case["facts"], case["figures"]
    greedy, wide = (by_width.get(f"11 s, {width}", {}) for width in ("greedy", "beam 5"))

    def stage(figures: dict[str, Any], engine: str, *names: str, per: float = 1.0) -> float | None:
        stages = figures.get(engine, {}).get("stages")
        return sum(stages[name] for name in names) / per if stages else None

    for kind in engines.WEIGHT_TYPES:
        ggml, openvino = f"whisperlib-ggml-{kind}", f"whisperlib-openvino-{kind}"
        per_token = {"per": TOKENS / 1e3}
        decoded = [None if case["model"] == "micro" else stage(each, ggml, "prompt", "decode", **per_token)
                   for each in (greedy, wide)]  # fmt: skip
        memory = [
            by.get(engine, {}).get(name)
            for engine in (ggml, openvino)
            for name, by in (("peak_bytes", wide), ("steady_bytes", wide))
        ]
        size, errors = facts["file bytes"].get(kind), facts["word error rate"].get(kind)
        yield (
            kind,
            _cell(size, "{:.0f}", 1e6),
            *(_cell(each, "{:.1f}") for each in decoded),
            *(_cell(stage(greedy, engine, "encode and cross"), "{:.2f}") for engine in (ggml, openvino)),
            *(_cell(each, "{:.0f}", 1e6) for each in memory),
            _cell(errors, "{:.1%}"),
        )


def _cell(value: float | None, form: str, unit: float = 1.0) -> str:
    return "–" if value is None else form.format(value / unit)


def parts(name: str, case: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    """Yield the headings and cells of each table of a case that has any."""
    if name == "weights":
        yield WEIGHT_HEADINGS, [*weight_rows(case)]
    yield HEADINGS, [*rows(case)]
    if name != "weights":  # its own table has what its stages and facts say
        for headings, cells in ((STAGE_HEADINGS, [*stage_rows(case)]), (FACT_HEADINGS, [*fact_rows(case)])):
            if cells:
                yield headings, cells


def tables(name: str, case: dict[str, Any]) -> Iterator[Table]:
    """Yield what a person reads in the terminal."""
    title = f"{name}: {case['model']}, {case['weights']}, {_threads(case)}"
    for headings, cells in parts(name, case):
        yield _terminal(title, headings, cells)


def claims_table(results: dict[str, Any]) -> Table:
    """Return one machine's claims for the terminal."""
    return _terminal(slug(results["machine"]), claims.HEADINGS, [row.cells() for row in claims.rows(results)])


def _terminal(title: str, headings: tuple[str, ...], cells: list[tuple[str, ...]]) -> Table:
    table = Table(title=title)
    for heading in headings:
        table.add_column(heading, no_wrap=heading in {"engine", "claim"})
    for row in cells:
        table.add_row(*row)
    return table


def _letters(figures: dict[str, Any]) -> str:
    return "".join(figures["text"].split())  # engines that split segments put spaces within words


def _threads(case: dict[str, Any]) -> str:
    return f"{case['threads']} threads" if case["threads"] else "threads as each engine chooses"


def merged(path: Path, machine: dict[str, Any], cases: dict[str, Any]) -> dict[str, Any]:
    """Return `cases` with those that `path` has of other names, if they were measured on the same machine."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        others = kept["cases"] if same(kept["machine"], machine) else {}
    except (OSError, ValueError, KeyError):
        others = {}
    return {"machine": machine, "cases": {**others, **cases}}


def every(output: Path) -> list[dict[str, Any]]:
    """Return the results of every machine below the directory `output`, in the order of their names."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(output.glob("*/results.json"))]


def page(results: dict[str, Any], method: str = "../../performance.md") -> str:
    """Return one machine's page: its claims and the tables of all cases. `method` is where the method is told."""
    machine = results["machine"]
    sets = ", ".join(machine["instruction_sets"])
    text = [
        f"# Performance: {machine['cpu']}, {machine['cores']} cores",
        f"{sets}; {machine['memory_bytes'] / 1e9:.0f} GB, {machine['system']}, Python {machine['python']}. Written by "
        f"`make bench`; [what is measured, and how]({method}). [Every figure](results.json), "
        "[plot](results.svg).",
        "## Claims",
        "Medians. `make bench ARGS=--claims` prints this table.",
        _table(claims.HEADINGS, [row.cells() for row in claims.rows(results)]),
    ]
    for name, case in results["cases"].items():
        text += [f"## {name}", *_described(machine, case)]
        text += [_table(headings, cells) for headings, cells in parts(name, case)]
        text += [f"Left out: {engine}: {reason}" for engine, reason in case["left_out"].items()]
    return "\n\n".join(text) + "\n"


def _described(machine: dict[str, Any], case: dict[str, Any]) -> Iterator[str]:
    rounds = max((one["rounds"] for by_engine in case["figures"].values() for one in by_engine.values()), default=0)
    yield (
        f"{case['model']}, whisper.cpp's files in {case['weights']}, {_threads(case)}, rounds: {rounds}, load average "
        f"{case['load_before']} before."
    )
    if command := case.get("command"):
        yield f"`{command}`" + (f", of commit {case['commit']}." if case["commit"] else ".")
    yield from ("; ".join(case["notes"]) + ".",) if case["notes"] else ()
    if case["load_before"] > machine["cores"]:
        yield "**Other work, or the case before, kept the machine busy: quote ratios, not these seconds.**"


def summary(machines: list[dict[str, Any]]) -> str:
    """Return the claims of all machines side by side: ratios, in bold where the target is missed."""
    names = [slug(results["machine"]) for results in machines]
    headings = ("claim", "target", *(f"[{name}](performance/{name}/README.md)" for name in names))
    lines = zip(*(claims.rows(results) for results in machines), strict=True)
    cells = [(line[0].claim.name, claims.wanted(line[0].claim), *map(_brief, line)) for line in lines]
    return _table(headings, cells)


def _brief(row: claims.Row) -> str:
    if row.ratio is None:
        return ""
    shown = f"{row.ratio:.2f}" if row.claim.theirs else row.cells()[1]
    return {True: shown, False: f"**{shown}**", None: f"({shown})"}[row.met]


def _table(headings: tuple[str, ...], cells: list[tuple[str, ...]]) -> str:
    lines = [headings, tuple("---" for _ in headings), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_summary(page: Path, text: str) -> None:
    """Put `text` between the page's markers. Raises ValueError where they are missing."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page}: there is no {BEGIN} … {END} to write between")
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")


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
    if not panels:
        return
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
