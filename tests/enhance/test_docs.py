"""docs/enhance.md: its example of Python runs, and what it says of numbers and names is so."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable

from tests.chat_server import chat_server
from tests.conftest import ROOT
from whisperlib.enhance import MODES, pieces, policy

PAGE = (ROOT / "docs/enhance.md").read_text(encoding="utf-8")
OLLAMA = "http://127.0.0.1:11434/v1"
RIGHT = "The train to Paris leaves at five."


def test_the_example_runs(run_python: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert OLLAMA in code
    with chat_server(lambda call: call.reply(RIGHT)) as server:
        done = run_python(code.replace(OLLAMA, server.base_url))
    assert done.stdout == f"enhanced {RIGHT} None\n", done.stderr


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (ROOT / "docs" / target).exists(), target


def test_the_numbers_and_names_are_those_of_the_code() -> None:
    assert f"at most {pieces.MAX_PIECE_BYTES} bytes" in PAGE
    assert all(f"| `{mode}`" in PAGE for mode in MODES)
    assert all(name in PAGE for name in policy.SMALL_MODELS)
