"""The ctypes mirror against the real header, compiled by the real compiler."""

from __future__ import annotations

import importlib.util
import re
import sysconfig
from pathlib import Path
from typing import Any

import cffi
import pytest

from tests.conftest import ROOT
from whisperlib.binding import structs
from whisperlib.binding.library import compare_layouts
from whisperlib.errors import AbiMismatchError

CTYPES_IMPORT = re.compile(r"^\s*(?:import|from) _?ctypes", re.MULTILINE)
HEADERS = sorted((ROOT / "native" / "build").glob("source*/**/include/whisper.h"))


def declarations(header: str) -> str:
    """Cut the mirrored structs, and the types that they are made of, out of whisper.h."""
    code = re.sub(r"//[^\n]*", "", header)
    code = re.sub(r"/\*.*?\*/", "", code, flags=re.DOTALL)
    wanted = [r"typedef int32_t whisper_(?:pos|token|seq_id);", r"typedef \w+ \(\*whisper_\w+_callback\)\([^;]*;"]
    wanted += [rf"(?:typedef )?(?:struct|enum) {name} \{{" for name in (*structs.MIRRORED, r"whisper_\w+")]
    found: dict[int, str] = {}
    for pattern in wanted:
        for match in re.finditer(pattern, code):
            end = match.end()
            if match[0].endswith("{"):
                depth = 1
                while depth:
                    depth += {"{": 1, "}": -1}.get(code[end], 0)
                    end += 1
                end = code.index(";", end) + 1
            found[match.start()] = code[match.start() : end]
    return "\n".join(
        [
            "typedef bool (*ggml_abort_callback)(void * data);",
            *(found[start] for start in sorted(found) if not found[start].startswith("struct whisper_timings")),
        ]
    )


@pytest.fixture(scope="module")
def ffi(tmp_path_factory: pytest.TempPathFactory) -> Any:
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        pytest.skip("cffi compiles against Python.h: apt-get install python3-dev (the shim is compared all the same)")
    if not HEADERS:
        pytest.fail("native/build holds no whisper.h: run `make native`")
    header = HEADERS[0]
    tree = header.parents[1]
    builder = cffi.FFI()
    builder.cdef(
        "struct whisper_context; struct whisper_state;\n" + declarations(header.read_text(encoding="utf-8")),
    )
    builder.set_source(
        "whisper_layout",
        '#include "whisper.h"',
        include_dirs=[str(tree / "include"), str(tree / "ggml" / "include")],
    )
    built = builder.compile(tmpdir=str(tmp_path_factory.mktemp("cffi")))
    spec = importlib.util.spec_from_file_location("whisper_layout", built)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ffi


def compiled_layout(ffi: Any, kind: Any, name: str, base: int = 0) -> dict[str, tuple[int, int]]:
    rows = {name: (base, ffi.sizeof(kind))}
    for field, description in kind.fields:
        offset = base + description.offset
        if description.type.kind == "struct":
            rows |= compiled_layout(ffi, description.type, f"{name}.{field}", offset)
        else:
            rows[f"{name}.{field}"] = (offset, ffi.sizeof(description.type))
    return rows


def test_every_field_is_where_the_compiler_puts_it(ffi: Any) -> None:
    compiled: dict[str, tuple[int, int]] = {}
    for name in structs.MIRRORED:
        compiled |= compiled_layout(ffi, ffi.typeof(f"struct {name}"), name)
    assert structs.mirrored_layout() == compiled


def test_the_sizes_are_those_of_the_supported_versions() -> None:
    layout = structs.mirrored_layout()
    assert layout["whisper_full_params"][1] == 304
    assert layout["whisper_context_params"][1] == 48
    assert layout["whisper_token_data"][1] == 56


@pytest.mark.parametrize(
    "change",
    [
        {"whisper_full_params.language": (88, 8)},
        {"whisper_full_params": (0, 296)},
        {"whisper_full_params.new_field": (304, 8)},
    ],
)
def test_another_layout_is_refused(change: dict[str, tuple[int, int]]) -> None:
    mirrored = structs.mirrored_layout()
    with pytest.raises(AbiMismatchError, match=re.escape(next(iter(change)))):
        compare_layouts({**mirrored, **change}, mirrored)


def test_a_missing_field_is_refused() -> None:
    mirrored = structs.mirrored_layout()
    with pytest.raises(AbiMismatchError, match="carry_initial_prompt"):
        compare_layouts(
            {name: row for name, row in mirrored.items() if not name.endswith("carry_initial_prompt")}, mirrored
        )


def test_only_the_binding_imports_ctypes() -> None:
    offenders = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "whisperlib").rglob("*.py")
        if "binding" not in path.parts and CTYPES_IMPORT.search(path.read_text("utf-8"))
    ]
    assert offenders == []
