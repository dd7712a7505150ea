"""The machine that was measured, and the ways in which a case makes it worse."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.ggml_file import REPOSITORY
from whisperlib import system

PERIOD_MICROSECONDS = 100_000
INSTRUCTION_SETS = ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx512f", "avx_vnni", "avx2")  # widest first
IDENTITY = ("cpu", "instruction_sets", "cores")


def describe() -> dict[str, Any]:
    """Return what decides about speed here, for the results."""
    allowance = system.cpu_allowance()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": system.cpu_model(),
        "instruction_sets": sorted(set(INSTRUCTION_SETS) & set(system.cpu_flags())),
        "cores": allowance.cores,
        "memory_bytes": memory,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def commit() -> str | None:
    """Return what is measured: the commit that is checked out, `-dirty` where code differs; None outside of git."""
    git = ["git", "-C", str(REPOSITORY)]
    try:
        described = subprocess.run(
            [*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True
        )
        code = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ".", ":(exclude)docs"], check=False)
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip() + ("-dirty" if code.returncode else "")


def slug(about: dict[str, Any]) -> str:
    """Return the name of a described machine's directory: `amd-epyc-avx512-bf16-2-cores`.

    A hypervisor may give processors of several generations one name; the widest instruction set tells them apart.
    """
    widest = next((each for each in INSTRUCTION_SETS if each in about["instruction_sets"]), "")
    words = f"{re.sub(r'[(](r|tm)[)]', '', about['cpu'].lower())} {widest} {about['cores']} cores"
    return "-".join(re.findall(r"[a-z0-9]+", words))


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether figures of the two descriptions may stand beside each other."""
    return all(one.get(key) == other.get(key) for key in IDENTITY)


@contextlib.contextmanager
def neighbours(count: int, *, apart: bool = False) -> Iterator[None]:
    """Keep `count` processes of our own priority busy meanwhile.

    `apart`: each in a session of its own, which Linux's automatic groups give a share like ours as a whole, as it is
    among containers.
    """
    command = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(command, start_new_session=apart) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


@dataclass(frozen=True)
class OneCpu:
    """How workers are held to one CPU: options of `bench.worker`, and its name for the report."""

    options: tuple[str, ...]
    how: str


@contextlib.contextmanager
def one_cpu(root: Path = Path("/sys/fs/cgroup")) -> Iterator[OneCpu]:
    """Give a cgroup whose quota is one CPU, version 2 or 1; where none can be made, one core's affinity."""
    for mount, files in (
        (root, {"cpu.max": f"{PERIOD_MICROSECONDS} {PERIOD_MICROSECONDS}"}),
        (root / "cpu", {"cpu.cfs_period_us": str(PERIOD_MICROSECONDS), "cpu.cfs_quota_us": str(PERIOD_MICROSECONDS)}),
    ):
        group = mount / f"whisperlib-bench-{os.getpid()}"
        if not (mount / "cgroup.procs").exists():
            continue
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if not all((group / name).exists() for name in files):
                continue
            for name, value in files.items():
                (group / name).write_text(value)
            yield OneCpu(("--cgroup", str(group)), f"cgroup quota of one CPU ({next(iter(files))})")
            return
        except PermissionError:
            continue
        finally:
            with contextlib.suppress(OSError):
                group.rmdir()
    core = min(os.sched_getaffinity(0))
    yield OneCpu(("--core", str(core)), "affinity to one core; no cgroup could be made")
