"""docs/features.md: every page, test and command that it names is there."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import click
import pytest

from tests.conftest import ROOT
from whisperlib.cli import cli

PAGE = ROOT / "docs/features.md"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith(("| --- |", "| feature |"))
]
LINKS = sorted({link for row in ROWS for link in re.findall(r"\]\(([^)]+)\)", row[1])})
SHOWN_BY = sorted({shown for row in ROWS for shown in re.findall(r"`([^`]+)`", row[-1])})
TESTS = [shown for shown in SHOWN_BY if "::" in shown]
COMMANDS = [shown for shown in SHOWN_BY if "::" not in shown]


def anchors(page: Path) -> set[str]:
    """Headings of a page as GitHub links to them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row[0]))
def test_a_feature_has_its_page_and_what_shows_it(row: list[str]) -> None:
    _, way, shown_by = row
    assert re.search(r"\[.+\]\(.+\)", way)
    assert re.fullmatch(r"`[^`]+`(, `[^`]+`)*", shown_by)


@pytest.mark.parametrize("link", LINKS)
def test_a_page_is_there(link: str) -> None:
    name, _, anchor = link.partition("#")
    assert (PAGE.parent / name).is_file()
    assert not anchor or anchor in anchors(PAGE.parent / name)


@pytest.mark.parametrize("node", TESTS)
def test_a_test_is_there(node: str) -> None:
    path, *names = node.split("::")
    inside: list[ast.stmt] = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
    for name in names[:-1]:
        [inside] = [found.body for found in inside if isinstance(found, ast.ClassDef) and found.name == name]
    assert [found for found in inside if isinstance(found, ast.FunctionDef) and found.name == names[-1]]


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_is_there(line: str) -> None:
    program, *words = shlex.split(line)
    if program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        return
    assert program == "whisperlib"
    command: click.Command | None = cli
    for word in words:
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), word)
        assert command, line
