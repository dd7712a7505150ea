"""What processes use, as Linux counts it: memory in bytes, CPU in seconds."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """`cpu_seconds` since the processes began; resident memory now, and the most there ever was."""

    cpu_seconds: float
    resident_bytes: int
    peak_bytes: int


def of_self_and(process_ids: Sequence[int], spawns: bool = False) -> Usage:
    """Tell what an engine uses: this process, or those that hold the model instead, or those that come and go.

    CPU counts the worker, its helpers and its ended children. Memory is that of the helpers where there are any,
    of the largest ended child where each request is a process, else of this process.
    """
    own = os.times()
    cpu_seconds = own.user + own.system + own.children_user + own.children_system + sum(map(_cpu_seconds, process_ids))
    if spawns:
        return Usage(cpu_seconds, 0, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
    memory = [_memory(process_id) for process_id in process_ids or (os.getpid(),)]
    return Usage(cpu_seconds, sum(now for now, _ in memory), sum(peak for _, peak in memory))


def _cpu_seconds(process_id: int) -> float:
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime, stime: fields 14 and 15 of proc(5)


def _memory(process_id: int) -> tuple[int, int]:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process_id}/status").read_text().splitlines())
    now, peak = (int(status[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, peak
