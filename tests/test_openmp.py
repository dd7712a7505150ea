"""How idle OpenMP threads wait. It is fixed before libgomp loads, so each case has a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from whisperlib import _openmp

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]

LOAD = """
import ctypes, logging, os
logging.basicConfig(format="%(levelname)s %(name)s %(message)s")
{before}
import whisperlib
from whisperlib import _openmp, binding
assert not {nothing_yet} or not _openmp.loaded_runtimes(), _openmp.loaded_runtimes()
binding.load({directory!r})
print(os.environ.get("GOMP_SPINCOUNT"), _openmp.loaded_runtimes())
"""


@pytest.fixture(autouse=True)
def _no_choice_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process has imported whisperlib: its children would inherit what that set."""
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_DISPLAY_ENV", "verbose")  # libgomp prints what it sees on stderr when it loads


@pytest.fixture
def load(run_python: RunPython, library_dir: Path) -> Callable[..., tuple[str, str, str]]:
    """Load the library in a child: stdout, stderr, and the spin count that libgomp saw."""

    def run(before: str = "", **environment: str) -> tuple[str, str, str]:
        code = LOAD.format(before=before, nothing_yet=not before, directory=str(library_dir))
        child = run_python(code, environment=environment)
        assert child.returncode == 0, child.stderr
        seen = re.findall(r"GOMP_SPINCOUNT = '(\w+)'", child.stderr)
        assert len(seen) == 1, child.stderr
        return child.stdout, child.stderr, seen[0]

    return run


def test_libgomp_sees_the_bounded_spin(load: Callable[..., tuple[str, str, str]]) -> None:
    stdout, stderr, seen = load()
    assert seen == "10000"
    assert stdout.startswith("10000 ('libgomp")
    assert "WARNING" not in stderr


@pytest.mark.parametrize(
    ("name", "value", "seen"), [("GOMP_SPINCOUNT", "123", "123"), ("OMP_WAIT_POLICY", "passive", "0")]
)
def test_the_user_s_choice_stands(load: Callable[..., tuple[str, str, str]], name: str, value: str, seen: str) -> None:
    stdout, stderr, spins = load(**{name: value})
    assert spins == seen
    assert stdout.startswith(f"{value} " if name == "GOMP_SPINCOUNT" else "None ")
    assert "WARNING" not in stderr


def test_a_libgomp_loaded_earlier_is_warned_of(load: Callable[..., tuple[str, str, str]]) -> None:
    _, stderr, seen = load("ctypes.CDLL('libgomp.so.1')")
    assert seen not in {"10000", "123"}
    warnings = [line for line in stderr.splitlines() if line.startswith("WARNING")]
    assert len(warnings) == 1
    assert "libgomp.so.1" in warnings[0]
    assert "was loaded before whisperlib" in warnings[0]
    assert "import whisperlib first, or set GOMP_SPINCOUNT=10000" in warnings[0]


def test_a_libgomp_loaded_earlier_with_the_user_s_choice_is_not(
    load: Callable[..., tuple[str, str, str]],
) -> None:
    _, stderr, seen = load("ctypes.CDLL('libgomp.so.1')", GOMP_SPINCOUNT="10000")
    assert seen == "10000"
    assert "WARNING" not in stderr


@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_an_empty_value_is_no_choice(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "")  # so that it is restored
    monkeypatch.setenv(name, "")
    monkeypatch.setattr(_openmp, "loaded_runtimes", lambda: ())
    assert _openmp.bound_waiting() is None
    assert os.environ["GOMP_SPINCOUNT"] == "10000"


@pytest.mark.parametrize(
    ("loaded", "hindered"),
    [
        (("libgomp.so.1.0.0",), True),
        (("libgomp.so.1",), True),
        # A wheel's copy has a name of its own, so ours is loaded beside it and sees the bound.
        (("libgomp-a34b3233.so.1.0.0",), False),
        (("libiomp5.so", "libomp.so.5"), False),
        ((), False),
    ],
)
def test_only_the_library_s_own_runtime_hinders(
    monkeypatch: pytest.MonkeyPatch, loaded: tuple[str, ...], hindered: bool
) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "")  # so that it is restored
    monkeypatch.setattr(_openmp, "loaded_runtimes", lambda: loaded)
    assert (_openmp.bound_waiting() is not None) is hindered
    assert os.environ["GOMP_SPINCOUNT"] == "10000"


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("7f00-7f01 r-xp 0000 08:01 99  /usr/lib/libgomp.so.1.0.0", "libgomp.so.1.0.0"),
        ("7f00-7f01 r-xp 0000 08:01 99  /site packages/t.libs/libgomp-a34b3233.so.1", "libgomp-a34b3233.so.1"),
        ("7f00-7f01 r-xp 0000 08:01 99  /opt/libiomp5.so", "libiomp5.so"),
        ("7f00-7f01 r-xp 0000 08:01 99  /opt/libomp.so.5", "libomp.so.5"),
        ("7f00-7f01 r-xp 0000 08:01 99  /usr/lib/libcomp.so.1", None),
        ("7f00-7f01 r-xp 0000 08:01 99  /usr/lib/notlibgomp.so.1", None),
        ("7f00-7f01 r-xp 0000 08:01 99  /libgomp.so.1/data.bin", None),
        ("7f00-7f01 rw-p 0000 00:00 0", None),
    ],
)
def test_runtimes_are_known_by_their_names(line: str, name: str | None) -> None:
    match = _openmp._RUNTIME.search(line)
    assert (match[1] if match else None) == name


ON_ONE_CPU = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from whisperlib import WhisperLibraryAdapter, assets
for threads in (1, 4):
    with WhisperLibraryAdapter("micro", threads=threads, concurrency=1) as whisper:
        print(whisper.transcribe(assets.SAMPLES / "german_001.flac", beam_size=5).text)
"""


def test_threads_of_one_cpu_come_to_the_same_text(run_python: RunPython) -> None:
    child = run_python(ON_ONE_CPU)
    assert child.returncode == 0, child.stderr
    alone, crowded = child.stdout.splitlines()
    assert alone
    assert crowded == alone
