"""The Makefile explains itself and does nothing twice."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from native.source import NATIVE

ROOT = NATIVE.parent
TARGETS = {
    "help",
    "demo",
    "test",
    "lint",
    "native",
    "native-portable",
    "native-cuda",
    "model",
    "bench",
    "soak",
    "clean",
}


def make(*arguments: str, cwd: Path = ROOT) -> str:
    # Without the variables of the make that may be running these tests.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=True).stdout


def test_help_lists_every_target_with_a_line() -> None:
    listed = dict(re.findall(r"^  (\S+)\s+(\S.*)$", make("help"), re.MULTILINE))
    phony = re.search(r"^\.PHONY:(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony
    assert set(listed) == set(phony[1].split()) >= TARGETS
    assert make() == make("help")


def test_a_second_run_installs_nothing(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    assert "pip install" in make("--dry-run", "test", cwd=tmp_path)
    (tmp_path / ".venv").mkdir()
    for stamp in (".build", ".dev"):
        (tmp_path / ".venv" / stamp).touch()
    assert "pip" not in make("--dry-run", "test", "demo", cwd=tmp_path)

    os.utime(tmp_path / "pyproject.toml", (2**32, 2**32))
    assert "pip install" in make("--dry-run", "demo", cwd=tmp_path)


def test_pytest_gets_the_arguments() -> None:
    assert "-m pytest -k audio" in make("--dry-run", "test", "ARGS=-k audio")


def test_the_check_before_a_merge_runs_tests_and_lint() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert {"make test", "make lint"} <= set(script.read_text().splitlines())
