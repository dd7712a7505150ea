"""The variant for this machine as `make native` left it, and the parts of the build script."""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from native import build, cuda
from native.source import BUILD, NATIVE, BuildError

CPU = NATIVE / "lib" / "cpu"
STRUCTS = (
    "whisper_full_params",
    "whisper_context_params",
    "whisper_ahead",
    "whisper_aheads",
    "whisper_token_data",
    "whisper_vad_params",
    "whisper_vad_context_params",
    "whisper_timings",
)


class Row(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("offset", ctypes.c_uint64), ("size", ctypes.c_uint64)]


@pytest.fixture(scope="module")
def shim() -> ctypes.CDLL:
    library = ctypes.CDLL(str(CPU / "libwhisperlib-shim.so"))
    library.whisperlib_layout.restype = ctypes.POINTER(Row)
    library.whisperlib_shim_whisper_version.restype = ctypes.c_char_p
    return library


@pytest.fixture(scope="module")
def layout(shim: ctypes.CDLL) -> dict[str, tuple[int, int]]:
    count = ctypes.c_size_t()
    rows = shim.whisperlib_layout(ctypes.byref(count))
    found = [(row.name.decode(), (row.offset, row.size)) for row in rows[: count.value]]
    assert len(dict(found)) == len(found), "a field is listed twice"
    return dict(found)


def info() -> dict[str, Any]:
    value = json.loads((CPU / "build-info.json").read_text())
    assert isinstance(value, dict)
    return value


def readelf(path: Path) -> str:
    command = ["readelf", "--dynamic", "--wide", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_build_info_describes_the_build() -> None:
    found = info()
    assert found["whisperlib_build"] == 1
    assert found["variant"] == "cpu"
    assert found["flags"]["GGML_NATIVE"] == found["flags"]["GGML_LLAMAFILE"] == found["flags"]["GGML_OPENMP"] == "ON"
    assert found["patches"] == sorted(path.name for path in (NATIVE / "patches").glob("*.patch"))
    assert re.fullmatch(r"\d+\.\d+\.\d+", found["whisper_version"])
    assert re.search(r"\d+\.\d+", found["compiler"])
    assert found["cpu"]
    assert (found["backend_plugins"], found["runtime_libraries"], found["cuda_architectures"]) == (
        False,
        [],
        None,
    )


def test_libraries_find_each_other_and_nothing_elsewhere() -> None:
    libraries = [
        "libwhisper.so.1",
        "libggml.so.0",
        "libggml-base.so.0",
        "libggml-cpu.so.0",
        "libwhisperlib-shim.so",
    ]
    for name in [*libraries, "libwhisper.so", "whisper-cli", "whisper-quantize"]:
        paths = re.findall(r"\((?:RPATH|RUNPATH)\)\s.*\[(.*)\]", readelf(CPU / name))
        assert paths == ["$ORIGIN"], name
    assert (CPU / "libwhisper.so").resolve().name == f"libwhisper.so.{info()['whisper_version']}"


@pytest.mark.parametrize("program", ["whisper-cli", "whisper-quantize"])
def test_programs_start_from_any_directory(tmp_path: Path, program: str) -> None:
    result = subprocess.run(
        [str(CPU / program), "--help"], cwd=tmp_path, env={}, capture_output=True, text=True, check=False
    )
    assert "usage" in (result.stdout + result.stderr).lower()


def test_openmp_is_used() -> None:
    assert "libgomp.so" in readelf(CPU / "libggml-cpu.so.0")


def test_the_temperature_getter_is_exported() -> None:
    assert ctypes.CDLL(str(CPU / "libwhisper.so")).whisper_full_get_segment_temperature_from_state


def test_shim_and_library_are_of_one_version(shim: ctypes.CDLL) -> None:
    library = ctypes.CDLL(str(CPU / "libwhisper.so"))
    library.whisper_version.restype = ctypes.c_char_p
    assert shim.whisperlib_shim_abi() == 2
    assert shim.whisperlib_shim_whisper_version() == library.whisper_version() == info()["whisper_version"].encode()
    shim.whisperlib_log_discard(2, b"text", None)


def test_the_shim_lists_every_field_of_the_header(layout: dict[str, tuple[int, int]]) -> None:
    header = (BUILD / "source/include/whisper.h").read_text()
    header = re.sub(r"//.*", "", header)
    expected = set()
    for struct in STRUCTS:
        match = re.search(rf"struct {struct} {{(.*?)\n    }}", header, re.DOTALL)
        assert match, struct
        body = match[1]
        for inner, name in re.findall(r"struct {([^}]*)} (\w+);", body):
            expected |= {f"{struct}.{name}.{field}" for field in re.findall(r"(\w+)\s*;", inner)}
        body = re.sub(r"struct {[^}]*} (\w+);", r"int \1;", body)
        expected |= {struct} | {f"{struct}.{field}" for field in re.findall(r"(\w+)\s*;", body)}
    nested = {
        "whisper_full_params.vad_params": "whisper_vad_params",
        "whisper_context_params.dtw_aheads": "whisper_aheads",
    }
    for prefix, struct in nested.items():
        expected |= {name.replace(struct, prefix, 1) for name in expected if name.startswith(f"{struct}.")}
    assert set(layout) == expected


def test_the_layout_is_that_of_this_version(layout: dict[str, tuple[int, int]]) -> None:
    """Offsets read by hand for x86-64 and 1.8.1 to 1.9.3."""
    assert layout["whisper_full_params"] == (0, 304)
    assert layout["whisper_context_params"] == (0, 48)
    assert layout["whisper_token_data"] == (0, 56)
    assert layout["whisper_full_params.strategy"] == (0, 4)
    assert layout["whisper_full_params.vad_params.threshold"][0] == layout["whisper_full_params.vad_params"][0]
    assert layout["whisper_full_params.beam_search.patience"][0] == layout["whisper_full_params.beam_search"][0] + 4


def test_nothing_is_built_twice() -> None:
    command = [sys.executable, "-m", "native.build", "cpu"]
    subprocess.run(command, cwd=NATIVE.parent, capture_output=True, check=True)
    before = (CPU / "build-info.json").stat()
    result = subprocess.run(command, cwd=NATIVE.parent, capture_output=True, text=True, check=True)
    assert (CPU / "build-info.json").stat() == before, result.stdout
    assert "compiling" not in result.stdout + result.stderr


def test_a_source_that_changes_meanwhile_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "LIB", tmp_path)
    monkeypatch.setattr(build, "_compile", lambda *_: tmp_path)
    monkeypatch.setattr(build, "current", lambda: None)
    with pytest.raises(BuildError, match="changed the source tree meanwhile"):
        build.build("cpu", 1, build.TARGETS)
    assert list(tmp_path.iterdir()) == []


def test_a_failing_step_shows_its_last_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "ROOT", tmp_path)
    log = tmp_path / "cpu.log"
    with pytest.raises(BuildError, match=r"compiling cpu failed; all of its output is in cpu\.log"):
        build.run_step(["sh", "-c", "echo fine; echo error: no such header >&2; exit 1"], log, "compiling cpu")
    assert "error: no such header" in capsys.readouterr().err
    assert log.read_text() == "fine\nerror: no such header\n"


def test_an_installed_variant_is_replaced_as_a_whole(tmp_path: Path) -> None:
    products, installed = tmp_path / "bin", tmp_path / "lib" / "cpu"
    products.mkdir()
    (products / "libwhisper.so.1").write_text("new")
    (products / "libwhisper.so").symlink_to("libwhisper.so.1")
    (products / "whisper-cli").write_text("new")
    (products / "whisper-bench").write_text("not asked for")
    installed.mkdir(parents=True)
    (installed / "libwhisper.so.0").write_text("old")
    build.install(products, installed, ["whisper", "whisper-cli"], {"key": "k"})
    names = {path.name for path in installed.iterdir()}
    assert names == {"libwhisper.so", "libwhisper.so.1", "whisper-cli", "build-info.json"}
    assert (installed / "libwhisper.so").is_symlink()
    assert [path.name for path in installed.parent.iterdir()] == ["cpu"]


@pytest.mark.parametrize("value", ["90", "80;90", "80-real;90-virtual;120a-real"])
def test_cuda_architectures(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("CUDA_ARCHITECTURES", value)
    assert cuda.architectures() == value


@pytest.mark.parametrize("value", ["native", "80,90", "90 ", "sm_90"])
def test_wrong_cuda_architectures_are_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("CUDA_ARCHITECTURES", value)
    with pytest.raises(BuildError, match="CUDA_ARCHITECTURES="):
        cuda.architectures()


def test_a_wrong_cuda_home_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(BuildError, match=f"CUDA_HOME={tmp_path}: no bin/nvcc there"):
        cuda.installed_toolkit()


def test_cuda_runtime_libraries_are_in_load_order(tmp_path: Path) -> None:
    for name in ("libcublas", "libcudart"):
        options = ["-shared", "-x", "c", "/dev/null", "-o", str(tmp_path / f"{name}.so")]
        subprocess.run(["gcc", *options, f"-Wl,-soname,{name}.so.13"], check=True)
    library = tmp_path / "libggml-cuda.so"
    needs = ["-Wl,--no-as-needed", f"-L{tmp_path}", "-lcublas", "-lcudart"]
    subprocess.run(["gcc", "-shared", "-x", "c", "/dev/null", "-o", str(library), *needs], check=True)
    assert cuda.runtime_libraries(library) == ["libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13"]


def test_the_server_is_kept_once_it_was_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "LIB", tmp_path)
    assert build.targets_of("cpu", server=False) == build.TARGETS
    asked = build.targets_of("cpu", server=True)
    assert asked == (*build.TARGETS, "whisper-server")
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "whisper-server").touch()
    assert build.targets_of("cpu", server=False) == asked
    assert build.targets_of("cpu-portable", server=False) == build.TARGETS
