"""What this process may use of the machine, and what it uses.

Cores are counted as the cgroup and the affinity mask allow them, not as the machine has them.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CpuAllowance:
    """`cores` is what may be kept busy, at least 1. `quota` is the cgroup's limit in cores, if it has one.

    `affinity` counts the cores of the affinity mask, which a cpuset narrows; `machine` those of the machine.
    """

    cores: int
    quota: float | None
    affinity: int
    machine: int

    def __str__(self) -> str:
        limits = [f"{self.machine} on the machine"]
        if self.affinity < self.machine:
            limits.append(f"{self.affinity} by cpuset or affinity")
        if self.quota is not None:
            limits.append(f"{self.quota:g} by cgroup quota")
        return f"{self.cores} cores ({', '.join(limits)})"


def cpu_allowance(root: Path = Path("/")) -> CpuAllowance:
    """Read the allowance of this process. `root` stands in for `/` in tests.

    The tightest quota on the way from the process's cgroup to the root counts, versions 1 and 2. A quota of
    1.5 cores gives one thread: a second would be stopped half of the time, and the first waits for it.
    """
    machine = os.cpu_count() or 1
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine
    quotas = [quota for quota in (_v2_quota(root), _v1_quota(root)) if quota is not None]
    quota = min(quotas, default=None)
    cores = affinity if quota is None else min(affinity, math.floor(quota))
    return CpuAllowance(max(1, cores), quota, affinity, machine)


def _v2_quota(root: Path) -> float | None:
    quotas = []
    for mount in ("sys/fs/cgroup", "sys/fs/cgroup/unified"):
        for directory in _own_and_parents(root / mount, _cgroup_path(root, "")):
            quota, _, period = _read(directory / "cpu.max").partition(" ")
            if quota.isdigit():
                quotas.append(int(quota) / int(period or 100_000))
    return min(quotas, default=None)


def _v1_quota(root: Path) -> float | None:
    quotas = []
    for mount in ("sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct"):
        for directory in _own_and_parents(root / mount, _cgroup_path(root, "cpu")):
            quota = _read(directory / "cpu.cfs_quota_us")  # -1: none
            period = _read(directory / "cpu.cfs_period_us")
            if quota.isdigit() and period.isdigit() and int(period):
                quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _cgroup_path(root: Path, controller: str) -> str:
    """Return this process's path in the hierarchy of `controller` ("" for version 2)."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _number, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return path
    return "/"


def _own_and_parents(mount: Path, path: str) -> list[Path]:
    # In a container the path may be the host's, which is not mounted: then only the mount itself is there.
    parts = [part for part in path.split("/") if part not in {"", ".."}]
    return [mount.joinpath(*parts[:n]) for n in range(len(parts), -1, -1)]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").strip()
    except OSError:
        return ""


def resident_bytes(process_id: int | None = None) -> int:
    """Resident memory of a process in bytes, of this one if none is named; 0 where the system does not tell."""
    fields = _read(Path(f"/proc/{process_id or 'self'}/statm")).split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if len(fields) > 1 else 0


def cpu_model() -> str:
    """Name of the processor, as the system gives it."""
    return _cpuinfo("model name") or "unknown processor"


def cpu_flags() -> tuple[str, ...]:
    """Instruction set flags of the processor, sorted."""
    return tuple(sorted((_cpuinfo("flags") or _cpuinfo("Features")).split()))  # x86; ARM


def machine_id() -> str:
    """Identify what decides which native code runs here: the processor and its instruction sets."""
    return hashlib.sha256(" ".join((cpu_model(), *cpu_flags())).encode()).hexdigest()[:16]


def _cpuinfo(key: str) -> str:
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""
