"""The README's examples run, and what it points to is there."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable

import pytest

from tests.conftest import ROOT

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]

README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = [code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if '"micro"' in code]


def test_there_is_an_example_to_run() -> None:
    assert EXAMPLES


@pytest.mark.parametrize("code", EXAMPLES)
def test_examples_run(run_python: RunPython, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    child = run_python(code)
    assert child.returncode == 0, child.stderr
    assert "The train to Paris leaves at five thirty-six from platform five." in child.stdout
    assert "What is the weather in New York tomorrow?" in child.stdout


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z-]+)", README)) - {"it"} <= targets
