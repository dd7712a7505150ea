"""What is missing on the machine is said in one line each, before anything else is tried."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from native import build
from native.source import NATIVE, BuildError

ROOT = NATIVE.parent


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """Return a PATH directory with a stub of every tool that is checked for."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("git", "gcc", "g++", "python3"):
        (folder / name).write_text("#!/bin/sh\nexit 0\n")
        (folder / name).chmod(0o755)
    return folder


def check(path: Path, *arguments: str) -> tuple[int, list[str]]:
    command = ["/bin/sh", str(NATIVE / "check_machine.sh"), *arguments]
    result = subprocess.run(command, env={"PATH": str(path)}, capture_output=True, text=True, check=False)
    return result.returncode, (result.stdout + result.stderr).splitlines()


def test_a_complete_machine_says_nothing(tools: Path) -> None:
    assert check(tools) == (0, [])


@pytest.mark.parametrize("name", ["git", "gcc", "g++", "python3"])
def test_each_missing_tool_is_one_line(tools: Path, name: str) -> None:
    (tools / name).unlink()
    status, lines = check(tools)
    assert status != 0
    assert len(lines) == 1
    assert name in lines[0]
    assert "apt-get install" in lines[0]


def test_an_empty_machine_lists_everything(tmp_path: Path) -> None:
    status, lines = check(tmp_path)
    assert status != 0
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("fails_on", "says"),
    [("version_info", "Python 3.10 or later"), ("ensurepip", "apt-get install python3-venv")],
)
def test_python_without_venv_or_too_old(tools: Path, fails_on: str, says: str) -> None:
    (tools / "python3").write_text(f'#!/bin/sh\ncase "$2" in *{fails_on}*) exit 1;; esac\n')
    status, lines = check(tools)
    assert status != 0
    assert len(lines) == 1
    assert says in lines[0]


def test_make_stops_at_the_line(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "native/check_machine.sh"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    command = ["make", "--no-print-directory", "-C", str(tmp_path), "demo", "PYTHON=nosuchpython"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = result.stderr.splitlines()
    assert result.returncode != 0
    assert lines[0] == "missing: nosuchpython: apt-get install python3 python3-venv"
    assert len(lines) == 2, "the other line is make's own"
    assert not (tmp_path / ".venv").exists()


def test_the_build_stops_without_a_compiler(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CXX", "nosuchcompiler")
    with pytest.raises(BuildError):
        build.check_machine()
    assert capfd.readouterr().err.splitlines() == [
        "missing: C++ compiler nosuchcompiler: apt-get install g++",
    ]
