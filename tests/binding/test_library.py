"""Finding, loading and refusing the native libraries. What a process can do once runs in a child."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from whisperlib import binding
from whisperlib.binding import library, prototypes, search
from whisperlib.errors import AbiMismatchError, LibraryLoadError, LibraryNotFoundError

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]

LOAD = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(message)s")
from whisperlib import binding
from whisperlib.errors import WhisperlibError
try:
    print("loaded", binding.load(sys.argv[1] if len(sys.argv) > 1 else {directory!r}).version)
except WhisperlibError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def copied(library_dir: Path, tmp_path: Path) -> Path:
    """A copy of the libraries that a test may damage."""
    copy = tmp_path / "lib"
    shutil.copytree(library_dir, copy, symlinks=True)
    return copy


def load_in_child(run_python: RunPython, directory: Path) -> str:
    child = run_python(LOAD.format(directory=str(directory)))
    assert child.returncode == 0, child.stderr
    return str(child.stdout.strip())


def replace_library(directory: Path, pattern: str, content: bytes | None) -> None:
    for path in directory.glob(pattern):
        path.unlink()
    if content is not None:
        (directory / pattern.replace("*", "")).write_bytes(content)


def test_loads_by_absolute_path_without_ld_library_path(run_python: RunPython, copied: Path) -> None:
    assert load_in_child(run_python, copied).startswith("loaded 1.")


def test_works_without_the_shim_by_the_defaults_sentinels(run_python: RunPython, copied: Path) -> None:
    (copied / library.SHIM_NAME).unlink()
    assert load_in_child(run_python, copied).startswith("loaded 1.")


def test_a_missing_file_is_named(run_python: RunPython, copied: Path) -> None:
    replace_library(copied, "libggml-base.so*", None)
    said = load_in_child(run_python, copied)
    assert said.startswith("LibraryLoadError")
    assert "libggml-base.so" in said
    assert "make native" in said


def test_a_file_that_is_no_library_is_named(run_python: RunPython, copied: Path) -> None:
    replace_library(copied, "libggml.so*", b"not a library")
    said = load_in_child(run_python, copied)
    assert "libggml.so" in said
    assert "not a shared library" in said


def test_a_wrong_architecture_is_named(run_python: RunPython, copied: Path) -> None:
    content = bytearray((copied / "libggml.so").read_bytes())
    content[18:20] = (183).to_bytes(2, "little")  # AArch64
    replace_library(copied, "libggml.so*", bytes(content))
    assert "wrong architecture (ELF machine 183" in load_in_child(run_python, copied)


@pytest.fixture
def compile_library() -> Callable[[Path, str, list[str]], None]:
    def compile_it(target: Path, code: str, flags: list[str]) -> None:
        source = target.with_suffix(".c")
        source.write_text(code, encoding="utf-8")
        subprocess.run(["g++", "-shared", "-fPIC", "-x", "c", str(source), "-o", str(target), *flags], check=True)

    return compile_it


def test_a_missing_dependency_is_named(
    run_python: RunPython, copied: Path, compile_library: Callable[..., None], tmp_path: Path
) -> None:
    compile_library(tmp_path / "libgone.so", "int gone(void) { return 1; }", [])
    replace_library(copied, "libggml.so*", None)
    compile_library(
        copied / "libggml.so",
        "int gone(void); int here(void) { return gone(); }",
        [f"-L{tmp_path}", "-Wl,--no-as-needed", "-lgone"],
    )
    (tmp_path / "libgone.so").unlink()
    assert "missing dependency libgone.so" in load_in_child(run_python, copied)


def test_a_missing_symbol_is_named(run_python: RunPython, copied: Path, compile_library: Callable[..., None]) -> None:
    replace_library(copied, "libggml.so*", None)
    compile_library(copied / "libggml.so", "int gone(void); int here(void) { return gone(); }", [])
    assert "missing symbol gone" in load_in_child(run_python, copied)


def test_an_older_library_is_refused(run_python: RunPython, copied: Path, compile_library: Callable[..., None]) -> None:
    # A double of whisper.cpp 1.8.0 without a shim: it has a version and nothing else that matters here.
    functions = "".join(f"void {name}(void) {{}}\n" for name in prototypes.WHISPER if name != "whisper_version")
    (copied / library.SHIM_NAME).unlink()
    replace_library(copied, "libwhisper.so*", None)
    compile_library(copied / "libwhisper.so", functions + 'const char * whisper_version(void) { return "1.8.0"; }', [])
    said = load_in_child(run_python, copied)
    assert said.startswith("AbiMismatchError")
    assert "1.8.0" in said


def test_a_library_with_shorter_structs_is_refused_by_its_sentinels(
    run_python: RunPython, copied: Path, compile_library: Callable[..., None]
) -> None:
    # A double that calls itself 1.8.5 and lays its defaults out as 1.8.0 does, eight bytes earlier.
    names = ("whisper_version", "whisper_full_default_params_by_ref", "whisper_free_params")
    functions = "".join(f"void {name}(void) {{}}\n" for name in prototypes.WHISPER if name not in names)
    (copied / library.SHIM_NAME).unlink()
    replace_library(copied, "libwhisper.so*", None)
    compile_library(
        copied / "libwhisper.so",
        functions
        + """
        #include <stdlib.h>
        #include <string.h>
        const char * whisper_version(void) { return "1.8.5"; }
        void * whisper_full_default_params_by_ref(int strategy) {
            char * params = (char *) calloc(1, 512);
            int n_max_text_ctx = 16384; float temperature_inc = 0.2f;
            memcpy(params + 8, &n_max_text_ctx, 4);
            memcpy(params + 124 - 8, &temperature_inc, 4);
            return params;
        }
        void whisper_free_params(void * params) { free(params); }
        """,
        [],
    )
    said = load_in_child(run_python, copied)
    assert said.startswith("AbiMismatchError")
    assert "temperature_inc" in said


def test_a_library_that_lacks_a_function_is_refused(
    run_python: RunPython, copied: Path, compile_library: Callable[..., None]
) -> None:
    replace_library(copied, "libwhisper.so*", None)
    compile_library(copied / "libwhisper.so", "int whisper(void) { return 1; }", [])
    said = load_in_child(run_python, copied)
    assert said.startswith("AbiMismatchError")
    assert "does not export whisper_version" in said


def test_a_shim_of_another_version_is_refused(
    run_python: RunPython, copied: Path, compile_library: Callable[..., None]
) -> None:
    (copied / library.SHIM_NAME).unlink()
    compile_library(
        copied / library.SHIM_NAME,
        """
        #include <stddef.h>
        unsigned whisperlib_shim_abi(void) { return 2; }
        const char * whisperlib_shim_whisper_version(void) { return "1.7.9"; }
        const void * whisperlib_layout(size_t * count) { *count = 0; return 0; }
        void whisperlib_log_discard(void) {}
        """,
        [],
    )
    said = load_in_child(run_python, copied)
    assert said.startswith("AbiMismatchError")
    assert "1.7.9" in said


def test_a_failed_load_leaves_the_way_free_for_another(run_python: RunPython, copied: Path, library_dir: Path) -> None:
    replace_library(copied, "libwhisper.so*", b"not a library")
    child = run_python(
        f"""
from whisperlib import binding
from whisperlib.errors import LibraryLoadError
try:
    binding.load({str(copied)!r})
except LibraryLoadError:
    print("refused")
print(binding.load({str(library_dir)!r}).version)
print({str(copied)!r} in open("/proc/self/maps").read())
"""
    )
    refused, version, mixed = child.stdout.split()
    assert (refused, mixed) == ("refused", "False")
    assert version.startswith("1.")


def test_what_a_failed_load_left_behind_mixes_with_nothing(
    run_python: RunPython, copied: Path, library_dir: Path, compile_library: Callable[..., None]
) -> None:
    replace_library(copied, "libggml.so*", None)
    compile_library(copied / "libggml.so", "int gone(void); int here(void) { return gone(); }", [])
    child = run_python(
        f"""
from whisperlib import binding
from whisperlib.errors import LibraryLoadError
for directory in ({str(copied)!r}, {str(library_dir)!r}):
    try:
        binding.load(directory)
    except LibraryLoadError as error:
        print(error)
"""
    )
    first, second = child.stdout.splitlines()
    assert "missing symbol gone" in first
    assert "use another process" in second


def test_a_second_directory_in_one_process_is_refused(library_dir: Path, tmp_path: Path) -> None:
    binding.load(library_dir)
    with pytest.raises(LibraryLoadError, match="use another process"):
        binding.load(tmp_path)
    assert binding.load(library_dir) is binding.loaded()


@pytest.mark.parametrize("version", ["1.8.0", "1.7.6", "1.10.0", "2.0.0", ""])
def test_unknown_versions_are_refused(version: str) -> None:
    with pytest.raises(AbiMismatchError, match="needs 1\\.8\\.1 to 1\\.9\\.3"):
        library.check_version(version, "here")


@pytest.mark.parametrize("version", ["1.8.1", "1.8.5", "1.9.3"])
def test_known_versions_are_taken(version: str) -> None:
    library.check_version(version, "here")


def test_search_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("argument", "setting", "model", "path"):
        (tmp_path / name).mkdir()
        (tmp_path / name / search.MAIN_LIBRARY).touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/nowhere:{tmp_path / 'path'}")
    monkeypatch.setattr(search, "own_build_root", lambda: tmp_path / "own")
    assert [c.origin for c in search.candidates(model_dir=tmp_path / "model")] == [
        "model directory",
        "LD_LIBRARY_PATH",
    ]
    monkeypatch.setenv("WHISPER_LIB_DIR", str(tmp_path / "setting"))
    assert [c.origin for c in search.candidates(model_dir=tmp_path / "model")] == ["WHISPER_LIB_DIR"]
    assert [c.origin for c in search.candidates(tmp_path / "argument")] == ["argument"]


def test_variants_of_one_root_come_best_first(tmp_path: Path) -> None:
    for variant in ("cpu-portable", "cpu", "cuda"):
        (tmp_path / variant).mkdir()
        (tmp_path / variant / "libwhisper.so.1").touch()
        (tmp_path / variant / "build-info.json").write_text(json.dumps({"variant": variant}), encoding="utf-8")
    assert [c.variant for c in search.candidates(tmp_path)] == ["cuda", "cpu", "cpu-portable"]


def test_nothing_found_names_every_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path / "a"))
    monkeypatch.setattr(search, "own_build_root", lambda: tmp_path / "b")
    with pytest.raises(LibraryNotFoundError) as caught:
        search.candidates(model_dir=tmp_path / "c")
    for name in ("a (LD_LIBRARY_PATH)", "b (own build)", "c (model directory)", "make native"):
        assert name in str(caught.value)
    assert isinstance(caught.value, FileNotFoundError)


def test_every_function_that_the_binding_calls_is_declared() -> None:
    declared = {
        *prototypes.WHISPER,
        *prototypes.WHISPER_OPTIONAL,
        *prototypes.GGML,
        *prototypes.GGML_BASE,
        *prototypes.SHIM,
        "whisper_log_set",  # declared in log.attach
        "whisperlib_log_discard",
        "whisperlib_guard_log_set",
    }
    directory = Path(library.__file__).parent
    called = {
        name
        for path in directory.glob("*.py")
        for name in re.findall(r"\.((?:whisper|ggml|whisperlib)_\w+)\(", path.read_text(encoding="utf-8"))
    }
    assert called <= declared
