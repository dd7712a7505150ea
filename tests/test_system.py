"""What the process may use, read from fake roots; what it uses, read from the real one."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from whisperlib import system
from whisperlib.system import CpuAllowance, cpu_allowance

V1_LINES = "5:memory:/docker/ab\n4:cpu,cpuacct:/docker/ab\n1:name=systemd:/docker/ab\n"


@pytest.fixture(autouse=True)
def _sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen cores on the machine, eight in the affinity mask."""
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)


@pytest.fixture
def root(tmp_path: Path) -> Callable[[dict[str, str]], Path]:
    """Make a root directory with these files."""

    def make(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(os.fsencode(text))
        return tmp_path

    return make


Root = Callable[[dict[str, str]], Path]


def v1(mount: str, path: str, quota: str, period: str = "100000\n") -> dict[str, str]:
    place = f"sys/fs/cgroup/{mount}{path}"
    return {f"{place}/cpu.cfs_quota_us": quota, f"{place}/cpu.cfs_period_us": period}


def test_without_cgroups(root: Root) -> None:
    assert cpu_allowance(root({})) == CpuAllowance(cores=8, quota=None, affinity=8, machine=16)


@pytest.mark.parametrize(
    ("cpu_max", "quota", "cores"),
    [
        ("max 100000\n", None, 8),
        ("max", None, 8),
        ("400000 100000\n", 4.0, 4),
        ("400000", 4.0, 4),  # the period is 100 ms unless it is said
        ("150000 100000\n", 1.5, 1),
        ("50000 100000\n", 0.5, 1),
        ("1000 100000\n", 0.01, 1),
        ("399999 100000\n", 3.99999, 3),
        ("30000 10000\n", 3.0, 3),
        ("6400000 100000\n", 64.0, 8),  # the affinity mask is tighter
        ("", None, 8),
    ],
)
def test_version_2(root: Root, cpu_max: str, quota: float | None, cores: int) -> None:
    made = root({"proc/self/cgroup": "0::/app\n", "sys/fs/cgroup/app/cpu.max": cpu_max})
    assert cpu_allowance(made) == CpuAllowance(cores, quota, 8, 16)


@pytest.mark.parametrize(
    ("quota_us", "period_us", "expected"),
    [
        ("-1\n", "100000\n", (8, None)),
        ("200000\n", "100000\n", (2, 2.0)),
        ("150000\n", "100000\n", (1, 1.5)),
        ("50000\n", "100000\n", (1, 0.5)),
        ("30000\n", "10000\n", (3, 3.0)),
        ("200000\n", "0\n", (8, None)),
        ("200000\n", "", (8, None)),
        ("", "100000\n", (8, None)),
    ],
)
@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_version_1(root: Root, mount: str, quota_us: str, period_us: str, expected: tuple[int, float | None]) -> None:
    made = root({"proc/self/cgroup": V1_LINES, **v1(mount, "/docker/ab", quota_us, period_us)})
    assert cpu_allowance(made) == CpuAllowance(*expected, 8, 16)


@pytest.mark.parametrize("tightest", ["/", "/kube/", "/kube/pod/", "/kube/pod/box/"])
def test_the_tightest_parent_counts_in_version_2(root: Root, tightest: str) -> None:
    places = ["/", "/kube/", "/kube/pod/", "/kube/pod/box/"]
    files = {f"sys/fs/cgroup{place}cpu.max": "600000 100000" for place in places}
    files[f"sys/fs/cgroup{tightest}cpu.max"] = "200000 100000"
    assert cpu_allowance(root({"proc/self/cgroup": "0::/kube/pod/box", **files})).quota == 2.0


def test_a_neighbour_s_quota_does_not_count(root: Root) -> None:
    made = root(
        {
            "proc/self/cgroup": "0::/kube/mine\n",
            "sys/fs/cgroup/kube/other/cpu.max": "100000 100000",
            "sys/fs/cgroup/kube/mine/child/cpu.max": "100000 100000",
        }
    )
    assert cpu_allowance(made).quota is None


def test_the_tightest_parent_counts_in_version_1(root: Root) -> None:
    files = {**v1("cpu", "/docker/ab", "-1"), **v1("cpu", "/docker", "300000"), **v1("cpu", "", "700000")}
    assert cpu_allowance(root({"proc/self/cgroup": V1_LINES, **files})).quota == 3.0


def test_hybrid_hierarchies_give_the_tighter_of_both(root: Root) -> None:
    files = {
        "proc/self/cgroup": f"{V1_LINES}0::/unit\n",
        "sys/fs/cgroup/unified/unit/cpu.max": "500000 100000",
        **v1("cpu", "/docker/ab", "600000"),
    }
    assert cpu_allowance(root(files)).quota == 5.0
    assert cpu_allowance(root(v1("cpu", "/docker/ab", "300000"))).quota == 3.0


@pytest.mark.parametrize(
    "path", ["/docker/0123abcd", "/../../system.slice/docker-ab.scope", "/", "/no/such:colon", "/\udcff\udcfe"]
)
def test_in_a_container_only_the_mount_itself_is_there(root: Root, path: str) -> None:
    """The path may be the host's, of any bytes, and not mounted here; nothing outside the mount is read."""
    outside = {"sys/fs/cpu.max": "1000 100000", "sys/cpu.max": "1000 100000"}
    one = root({"proc/self/cgroup": f"0::{path}\n", "sys/fs/cgroup/cpu.max": "250000 100000\n", **outside})
    assert cpu_allowance(one) == CpuAllowance(2, 2.5, 8, 16)
    (one / "sys/fs/cgroup/cpu.max").unlink()
    other = root({"proc/self/cgroup": f"3:cpuacct,cpu:{path}\n", **v1("cpu", "", "150000\n")})
    assert cpu_allowance(other) == CpuAllowance(1, 1.5, 8, 16)


def test_affinity(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    made = root({"sys/fs/cgroup/cpu.max": "600000 100000"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {3, 9})
    assert cpu_allowance(made) == CpuAllowance(2, 6.0, 2, 16)
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cpu_allowance(made) == CpuAllowance(6, 6.0, 16, 16)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cpu_allowance(made) == CpuAllowance(1, 6.0, 1, 1)


def test_an_allowance_in_words() -> None:
    assert str(CpuAllowance(1, 1.5, 8, 16)) == (
        "1 cores (16 on the machine, 8 by cpuset or affinity, 1.5 by cgroup quota)"
    )
    assert str(CpuAllowance(16, None, 16, 16)) == "16 cores (16 on the machine)"


def test_here() -> None:
    assert 1 <= cpu_allowance().cores <= 8


def test_resident_memory_grows_with_what_is_touched() -> None:
    before = system.resident_bytes()
    with mmap.mmap(-1, 400 * 2**20):  # mapped, but not touched
        assert system.resident_bytes() - before < 40 * 2**20
    block = np.ones(50 * 2**20, np.uint8)
    after = system.resident_bytes()
    assert before > 2**20
    assert 40 * 2**20 < after - before < 200 * 2**20
    assert block[-1] == 1


X86 = """processor : 0
model name\t: Xeon
vmx flags\t: vnmi
flags\t\t: sse2 avx amx_int8

processor : 1
model name\t: Other
flags\t\t: none
"""
ARM = "processor : 0\nFeatures\t: fp asimd sve\nCPU part\t: 0xd40\n"


@pytest.fixture
def cpuinfo(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Stand in for /proc/cpuinfo."""

    def become(text: str) -> None:
        monkeypatch.setattr(system, "_read", lambda path: text if path == Path("/proc/cpuinfo") else "")

    return become


def test_processor(cpuinfo: Callable[[str], None]) -> None:
    cpuinfo(X86)
    assert (system.cpu_model(), system.cpu_flags()) == ("Xeon", ("amx_int8", "avx", "sse2"))
    cpuinfo(ARM)
    assert (system.cpu_model(), system.cpu_flags()) == ("unknown processor", ("asimd", "fp", "sve"))
    cpuinfo("")
    assert (system.cpu_model(), system.cpu_flags()) == ("unknown processor", ())


def test_the_machine_id_follows_the_processor_and_its_instructions(cpuinfo: Callable[[str], None]) -> None:
    here = system.machine_id()
    assert here == system.machine_id()
    assert len(here) == 16
    ids = []
    for text in (X86, X86.replace("Xeon", "EPYC"), X86.replace(" amx_int8", ""), ARM, ARM.replace(" sve", "")):
        cpuinfo(text)
        ids.append(system.machine_id())
    assert len(set(ids)) == 5
    cpuinfo(X86.replace("sse2 avx amx_int8", "amx_int8  sse2 avx").replace("processor : 1", "processor : 7"))
    assert system.machine_id() == ids[0]
