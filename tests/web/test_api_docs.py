"""docs/api.md: its examples run against a real server, and its tables are what the code says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from flask import Flask
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import ROOT
from tests.web.running_server import RunningServer, running_server
from tests.web.test_running import file_server, send_audio
from whisperlib import assets
from whisperlib.formats import MEDIA_TYPES
from whisperlib.web import errors, schemas
from whisperlib.web.routes import inference

PAGE = (ROOT / "docs/api.md").read_text(encoding="utf-8")
BATCHES = (ROOT / "docs/batches.md").read_text(encoding="utf-8")  # its examples run here, too
SERVER = "http://127.0.0.1:8000"  # as the page has it
AUDIO_URL = "https://example.org/talk.flac"
STARTS_A_SERVER = "whisperlib serve"
ADMIN_KEY = "simsalabim"
AN_ID = re.compile("[0-9a-f]{32}")


class Example(NamedTuple):
    """A block of code, and what it prints where the next block tells."""

    language: str
    code: str
    kind: str
    printed: str


EXAMPLES = [
    Example(*groups)
    for groups in re.findall(r"```(sh|python)\n(.*?)```(?:\n\n```(json|text)\n(.*?)```)?", PAGE + BATCHES, re.DOTALL)
]

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    batches, cache = (tmp_path_factory.mktemp(name) for name in ("batches", "cache"))  # a server has both by default
    with running_server(url_allow="127.0.0.1", admin_keys=ADMIN_KEY, batches=batches, cache=cache) as server:
        yield server


@pytest.fixture
def audio_url() -> Iterator[str]:
    with file_server(send_audio) as url:
        yield url


@pytest.fixture
def run(
    server: RunningServer, audio_url: str, run_python: RunPython, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Example], str]:
    """Run an example as it stands, but for the addresses; return what it prints."""
    monkeypatch.chdir(assets.SAMPLES)
    monkeypatch.setenv("ADMIN_KEY", ADMIN_KEY)

    def output_of(example: Example) -> str:
        assert SERVER in example.code
        if "curl" in example.code and not shutil.which("curl"):
            pytest.skip("curl is not installed")
        code = example.code.replace(SERVER, server.url).replace(AUDIO_URL, audio_url)
        if example.language == "python":
            child = run_python(code)
        else:
            command = [shutil.which("bash") or "sh", "-ec", code]
            child = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert child.returncode == 0, child.stderr
        return child.stdout

    return output_of


@pytest.mark.parametrize("example", [one for one in EXAMPLES if STARTS_A_SERVER not in one.code])
def test_an_example_prints_what_the_page_says(run: Callable[[Example], str], example: Example) -> None:
    printed = run(example)
    assert printed
    if example.kind == "json":
        assert alike(json.loads(printed), json.loads(example.printed)), printed
    else:
        assert '"error"' not in printed
        lines = iter(printed.splitlines())
        missing = [line for line in example.printed.splitlines() if line not in lines]
        assert not missing, printed


def alike(told: Any, expected: Any) -> bool:
    """Whether two values of JSON are the same but for numbers, which depend on the machine, and ids."""
    if isinstance(expected, dict):
        return isinstance(told, dict) and list(told) == list(expected) and all(
            alike(told[name], expected[name]) for name in expected
        )  # fmt: skip
    if isinstance(expected, list):
        return isinstance(told, list) and len(told) == len(expected) and all(map(alike, told, expected))
    if isinstance(expected, str) and AN_ID.fullmatch(expected):
        return bool(AN_ID.fullmatch(told))
    if isinstance(expected, bool) or not isinstance(expected, (int, float)):
        return bool(told == expected)
    return isinstance(told, (int, float))


def test_the_examples_are_found() -> None:
    assert len(EXAMPLES) == len(re.findall(r"```(?:sh|python)\n", PAGE + BATCHES)) > 10
    assert sum(example.kind != "" for example in EXAMPLES) == len(re.findall(r"```(?:json|text)\n", PAGE + BATCHES))


def test_every_sample_that_is_named_exists() -> None:
    names = re.findall(r"@([\w.]+)", PAGE)
    assert names
    assert all((assets.SAMPLES / name).exists() for name in names)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", PAGE + BATCHES):
        assert (ROOT / "docs" / target).exists(), target


def test_every_route_is_named(app: Flask) -> None:
    rules = {re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule) for rule in app.url_map.iter_rules()}
    assert "/transcribe" in rules
    assert not [rule for rule in rules - {"/docs/{name}", "/page/{name}"} if f"`{rule}`" not in PAGE]


def test_the_table_has_every_field_of_transcribe_as_it_is() -> None:
    rows = [*field_rows(schemas.Form), *field_rows(schemas.Form.model_fields["vad_options"].annotation, "vad_options.")]
    assert section_rows("Fields of /transcribe") == rows


def test_the_table_has_every_field_of_inference_as_it_is() -> None:
    assert section_rows("Fields of /inference") == field_rows(inference.InferenceForm)
    for name in (*inference.REFUSED, *inference.WITHOUT_EFFECT):
        assert f"`{name}`" in PAGE


def test_every_error_code_is_told_with_its_status() -> None:
    rows = section_rows("Errors")
    told = {(int(status), code.strip("`")) for status, codes, *_ in rows for code in codes.split(", ")}
    assert {(status, code) for _, status, code, _ in errors._TABLE} <= told
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "whisperlib/web").rglob("*.py"))
    found = re.findall(r'code="(\w+)"|\b[45]\d\d, .*, "(\w+)"\)', sources)
    written = {keyword or last for keyword, last in found} - {"client_gone"}  # nobody is there to read that one
    assert written <= {code for _, code in told}


def test_every_metric_is_told(app: Flask) -> None:
    text = app.test_client().get("/metrics").text
    names = {family.name for family in text_string_to_metric_families(text)}
    assert "whisper_audio_seconds" in names
    ours = {name for name in names if not name.startswith("process_") and not name.endswith("_created")}
    assert not [name for name in ours if f"`{name}" not in PAGE]


def test_every_format_is_told() -> None:
    assert not [media_type for media_type in MEDIA_TYPES.values() if f"`{media_type}`" not in PAGE]


def section_rows(title: str) -> list[tuple[str, ...]]:
    """Return the body of the first table under a heading."""
    section = re.split(r"\n#+ ", PAGE.split(f" {title}\n", 1)[1])[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines[2:]]


def field_rows(model: Any, prefix: str = "") -> list[tuple[str, ...]]:
    """Return what a table should say of a model: name, default, what is allowed, meaning."""
    properties = model.model_json_schema()["properties"]
    return [
        (f"`{prefix}{name}`", _default(field), _allowed(properties[name]), str(field.description))
        for name, field in model.model_fields.items()
    ]


def _default(field: Any) -> str:
    if field.is_required() or field.default is None or field.default_factory:
        return ""
    if isinstance(field.default, bool):
        return json.dumps(field.default)
    return f"{field.default:g}" if isinstance(field.default, float) else str(field.default)


def _allowed(schema: dict[str, Any]) -> str:
    kinds = [kind for kind in schema.get("anyOf", [schema]) if kind.get("type") != "null"]
    kind = kinds[0]
    if "enum" in kind:
        return ", ".join(kind["enum"])
    if "maxLength" in kind:
        return f"up to {kind['maxLength']} characters"
    if "maximum" in kind:
        low = f"above {kind['exclusiveMinimum']:.9g}" if "exclusiveMinimum" in kind else f"{kind['minimum']:.9g}"
        return f"{low} to {kind['maximum']:.9g}"
    return {"boolean": "true, false", "integer": "a whole number", "number": "a number"}.get(kind.get("type", ""), "")
