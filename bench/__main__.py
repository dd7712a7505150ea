"""The judge: compares whisperlib with other engines on this machine, in one run.

Same weights, same audio, rounds in turn, medians and ratios. Prints tables; writes `results.json`, a plot and a page
into the machine's own directory of `docs/performance`, and the claims into `docs/performance.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import cases, engines, figures, machine, models, report
from tools.ggml_file import REPOSITORY
from tools.random_weights import TYPES
from whisperlib import system
from whisperlib.errors import WhisperlibError

RESULTS = REPOSITORY / "docs/performance"
PAGE = REPOSITORY / "docs/performance.md"


def main(arguments: list[str] | None = None) -> int:
    """Run the cases that the command line names, or all."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--case", action="append", choices=cases.CASES, help="only this one; may be given again (all)")
    parser.add_argument("--engine", action="append", choices=engines.CONTESTANTS, help="only this one (the case's)")
    parser.add_argument("--all-engines", action="store_true", help="every engine, also where it takes longer")
    parser.add_argument("--size", default="small", choices=models.SIZES, help="dimensions of the weights (small)")
    parser.add_argument("--weights", default="q8_0", choices=TYPES, help="type of whisper.cpp's files (q8_0)")
    parser.add_argument("--threads", type=int, default=system.cpu_allowance().cores, help="of every engine (cores)")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds, at most (5)")
    parser.add_argument("--budget", type=float, default=240, help="seconds after which no round begins (240)")
    parser.add_argument("--minutes", type=float, default=10, help="length of the long file (10)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="directory of the results (docs/performance)")
    parser.add_argument("--claims", action="store_true", help="only print what is claimed beside what was measured")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.threads < 1 or options.minutes <= 0:
        parser.error("give at least one round, one thread, and a file with some length")
    if options.claims:
        return print_claims(options.output)
    command = "make bench" + (f" ARGS={shlex.quote(shlex.join(arguments))}" if arguments else "")
    plan = cases.Plan(
        size=options.size,
        kind=options.weights,
        threads=options.threads,
        rounds=options.rounds,
        budget_seconds=options.budget,
        engines=tuple(engines.CONTESTANTS) if options.all_engines else tuple(options.engine or ()),
        minutes=options.minutes,
    )
    try:
        for name in options.case or cases.CASES:
            if cases.names_of(name, plan):
                judge(name, plan, options.output, command)
            else:
                print(f"{name}: none of the engines that were asked for takes part")
    except (WhisperlibError, OSError, ValueError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


def judge(name: str, plan: cases.Plan, output: Path, command: str) -> dict[str, Any]:
    """Run one case, print its tables, and write the results with it. `command` is how it was asked for."""
    about = machine.describe()
    started = time.monotonic()
    case = {
        "command": command,
        "commit": machine.commit(),
        "model": plan.size,
        "weights": plan.file_kind,
        "threads": None if name == "quota" else plan.threads,  # there each engine chooses
        "load_before": about.pop("load_before"),
        **figures.of_outcome(cases.run(name, plan)),
        "took_seconds": round(time.monotonic() - started),
    }
    console = Console(width=None if sys.stdout.isatty() else 180)
    for table in report.tables(name, case):
        console.print(table)
    for note in [*case["notes"], *(f"left out: {engine}: {reason}" for engine, reason in case["left_out"].items())]:
        console.print(note)
    directory = output / machine.slug(about)
    directory.mkdir(parents=True, exist_ok=True)
    results = report.merged(directory / "results.json", about, {name: case})
    (directory / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_pages(output)
    try:
        report.plot(results, directory / "results.svg")
    except ImportError as error:
        console.print(f"no plot: {error}")
    return results


def write_pages(output: Path) -> None:
    """Write the page of every machine that has results, and beside the method what they come to."""
    machines = report.every(output)
    for results in machines:
        page = output / machine.slug(results["machine"]) / "README.md"
        page.write_text(report.page(results, os.path.relpath(PAGE, page.parent)), encoding="utf-8")
    if output == RESULTS:
        report.write_summary(PAGE, report.summary(machines))


def print_claims(output: Path) -> int:
    """Print the claims of every machine that has results; return the exit status."""
    machines = report.every(output)
    console = Console(width=None if sys.stdout.isatty() else 180)
    for results in machines:
        console.print(report.claims_table(results))
    if not machines:
        print(f"bench: no results below {output}: run `make bench` first", file=sys.stderr)
    return 0 if machines else 1


if __name__ == "__main__":
    sys.exit(main())
