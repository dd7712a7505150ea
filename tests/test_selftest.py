"""The self-test of a build: what it finds, and how long a verdict holds."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from whisperlib import assets, binding, selftest, system
from whisperlib.binding import Candidate
from whisperlib.binding.search import read_build_info
from whisperlib.selftest import WEIGHT_TYPES, Verdict

TRAP = {"x86_64": b"\x0f\x0b", "aarch64": b"\0\0\0\0"}  # ud2; udf


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def copy_of_build(library_dir: Path, tmp_path: Path) -> Path:
    """A copy of the libraries under test, untested."""
    copy = tmp_path / "build"
    shutil.copytree(library_dir, copy, symlinks=True)
    (copy / "selftest.json").unlink(missing_ok=True)
    return copy


@pytest.fixture
def no_libraries(tmp_path: Path) -> Path:
    """A directory for a quantizer alone: where it fails, no library is loaded."""
    directory = tmp_path / "build"
    directory.mkdir()
    return directory


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Test these weight types only, to be quick."""

    def limit(*kinds: str) -> None:
        assert set(kinds) <= set(WEIGHT_TYPES)
        monkeypatch.setattr(selftest, "WEIGHT_TYPES", kinds)

    return limit


def replace_quantizer(build: Path, code: str) -> None:
    script = build / "whisper-quantize"
    script.write_text(f"#!{sys.executable} -S\nimport os, signal, sys, time\n{code}\n", encoding="utf-8")
    script.chmod(0o755)


def test_the_real_libraries_pass_all_four_weight_types(library_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: dict[str, str] = {}
    run_command = selftest._problem

    def listen(command: list[str]) -> tuple[str, str]:
        answer = run_command(command)
        if "--child" in command:
            heard[Path(command[-1]).stem] = answer[0]
        return answer

    monkeypatch.setattr(selftest, "_problem", listen)
    found = selftest.run(library_dir, "some build")
    assert found == Verdict(system.machine_id(), "some build", {})
    assert found.passed
    assert str(found) == "passed"
    text = "Call the doctor on Thursday."
    assert heard == {"ggml-micro-f16": text, "q8_0": text, "q5_1": text, "q4_0": text}


def test_a_wrong_text_is_found(library_dir: Path, only: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """The expected text is a double: the library gives what it always gives."""
    only("f16")
    monkeypatch.setattr(assets, "sample_text", lambda _name: "Call the dentist.")
    found = selftest.run(library_dir, "build")
    assert not found.passed
    assert str(found) == "failed: f16 gave 'Call the doctor on Thursday.' instead of 'Call the dentist.'"


@pytest.mark.skipif(platform.machine() not in TRAP, reason="no illegal instruction known here")
def test_a_build_that_crashes_on_one_weight_type(
    library_dir: Path, copy_of_build: Path, only: Callable[..., None]
) -> None:
    """The dot product of q5_1 begins with an illegal instruction, as if built for another processor."""
    binding.load(library_dir)
    patched = 0
    for path in copy_of_build.glob("libggml-cpu*.so*"):
        if path.is_symlink():
            continue
        library = ctypes.CDLL(str(library_dir / path.name))
        start = ctypes.cast(library.ggml_vec_dot_q5_1_q8_1, ctypes.c_void_p).value
        assert start
        code, data = ctypes.string_at(start, 128), path.read_bytes()
        assert data.count(code) == 1
        trap = TRAP[platform.machine()]
        path.write_bytes(data.replace(code, trap + code[len(trap) :]))
        patched += 1
    assert patched
    only("f16", "q5_1")
    found = selftest.run(copy_of_build, "build")
    assert found.failures == {"q5_1": "died with SIGILL"}
    assert str(found) == "failed: q5_1 died with SIGILL"


def test_a_missing_library_is_named(copy_of_build: Path, only: Callable[..., None]) -> None:
    for path in [copy_of_build / "libggml.so", *copy_of_build.glob("libggml.so.*")]:
        path.unlink()
    only("f16")
    what = selftest.run(copy_of_build, "build").failures["f16"]
    assert what.startswith("exited with 1: whisperlib.errors.LibraryLoadError: ")
    assert "has no libggml.so" in what


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("os.kill(os.getpid(), signal.SIGILL)", "died with SIGILL"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "died with SIGKILL"),
        ("sys.stderr.write('first\\nlast\\n'); sys.exit(3)", "exited with 3: last"),
        ("sys.exit(3)", "exited with 3: no output"),
        ("os.write(2, b'caf\\xe9'); sys.exit(1)", "exited with 1: caf�"),
    ],
)
def test_a_quantizer_that_fails(no_libraries: Path, only: Callable[..., None], code: str, what: str) -> None:
    only("q8_0", "q4_0")
    replace_quantizer(no_libraries, code)
    found = selftest.run(no_libraries, "build")
    assert found.failures == dict.fromkeys(("q8_0", "q4_0"), f"could not be made: {what}")


def test_programs_find_the_runtime_libraries_that_the_binding_finds(
    no_libraries: Path, only: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """CUDA's come as Python packages, where no program looks of itself."""
    only("q8_0")
    package = tmp_path / "site-packages" / "nvidia" / "cu99" / "lib"
    package.mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    replace_quantizer(no_libraries, "sys.exit(os.environ['LD_LIBRARY_PATH'])")
    for own in ("/opt/mine", ""):
        monkeypatch.setenv("LD_LIBRARY_PATH", own)
        places = selftest.run(no_libraries, "build").failures["q8_0"].split(": ")[-1].split(":")
        assert places[0] == str(package)
        assert "" not in places  # it would be the working directory
        assert own in {"", places[-1]}


def test_a_quantizer_that_hangs(no_libraries: Path, only: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    only("q8_0")
    monkeypatch.setattr(selftest, "TIMEOUT_SECONDS", 0.2)
    replace_quantizer(no_libraries, "time.sleep(1000)")
    assert "timed out after 0.2 seconds" in selftest.run(no_libraries, "build").failures["q8_0"]


def test_a_quantizer_that_is_no_program(no_libraries: Path, only: Callable[..., None]) -> None:
    only("q8_0")
    (no_libraries / "whisper-quantize").write_bytes(b"\x7fELF, but not really")
    assert "could not be made: " in selftest.run(no_libraries, "build").failures["q8_0"]


def test_without_a_quantizer_only_f16_is_tried(no_libraries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def record(command: list[str]) -> tuple[str, str]:
        commands.append(command)
        return assets.sample_text(selftest.SAMPLE), ""

    monkeypatch.setattr(selftest, "_problem", record)
    assert selftest.run(no_libraries, "build").passed
    assert [command[-1] for command in commands] == [str(assets.MICRO_MODEL)]
    assert selftest.run(no_libraries, "build", use_gpu=True).passed
    assert commands[1] == [*commands[0], "--gpu"]


# How long a verdict holds: `run` is a double from here on, which counts.


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Count the tests of a double that finds a failure, each with its `use_gpu`."""
    made: list[bool] = []

    def run(_directory: Path, build: str, *, use_gpu: bool = False) -> Verdict:
        made.append(use_gpu)
        return Verdict(system.machine_id(), build, {"q4_0": f"failed in test {len(made)}"})

    monkeypatch.setattr(selftest, "run", run)
    return made


@pytest.fixture
def build(tmp_path: Path) -> Path:
    directory = tmp_path / "fake"
    directory.mkdir()
    (directory / "libwhisper.so.1").write_bytes(b"code")
    (directory / "libwhisper.so").symlink_to("libwhisper.so.1")
    (directory / "build-info.json").write_text('{"variant": "cpu", "compiler": "g++ 12"}', encoding="utf-8")
    return directory


def verdict(directory: Path, *, use_gpu: bool = False) -> Verdict | None:
    return selftest.verdict(Candidate(directory, "test", read_build_info(directory)), use_gpu=use_gpu)


def test_a_verdict_holds_for_the_machine_and_the_build(build: Path, runs: list[bool]) -> None:
    first = verdict(build)
    assert first
    assert verdict(build) == first
    assert len(runs) == 1
    assert json.loads((build / "selftest.json").read_text(encoding="utf-8")) == {
        "machine": system.machine_id(),
        "build": first.build,
        "failures": {"q4_0": "failed in test 1"},
    }
    assert sorted(path.name for path in build.iterdir() if path.name.startswith(".")) == []
    assert not (build.parent / "cache").exists()


def test_another_machine_tests_again(build: Path, runs: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    verdict(build)
    monkeypatch.setattr(system, "machine_id", lambda: "another machine")
    again = verdict(build)
    assert again
    assert again.machine == "another machine"
    assert verdict(build) == again
    assert len(runs) == 2


@pytest.mark.parametrize("change", ["size", "date", "info", "file"])
def test_another_build_is_tested_again(build: Path, runs: list[bool], change: str) -> None:
    before = verdict(build)
    library = build / "libwhisper.so.1"
    if change == "size":
        date = library.stat().st_mtime_ns
        library.write_bytes(b"other code")
        os.utime(library, ns=(date, date))
    elif change == "date":
        os.utime(library, (1, 1))
    elif change == "info":
        (build / "build-info.json").write_text('{"variant": "cpu", "compiler": "g++ 13"}', encoding="utf-8")
    else:
        (build / "libggml-cpu.so.0").write_bytes(b"more")
    after = verdict(build)
    assert before
    assert after
    assert before.build != after.build
    assert len(runs) == 2


def test_a_new_file_that_is_no_library_changes_nothing(build: Path, runs: list[bool]) -> None:
    before = verdict(build)
    (build / "whisper-cli").write_bytes(b"program")
    (build / "libwhisper.so.9").symlink_to("libwhisper.so.1")
    assert verdict(build) == before
    assert len(runs) == 1


def test_the_gpu_and_the_cpu_have_verdicts_of_their_own(build: Path, runs: list[bool]) -> None:
    """A CUDA build that was tried where no GPU answered is tried again where one does."""
    cpu, gpu = verdict(build), verdict(build, use_gpu=True)
    assert cpu != gpu
    assert verdict(build, use_gpu=True) == gpu
    assert runs == [False, True]


@pytest.mark.parametrize("text", ["", "{", "[]", "[1, 2]", "null", "{}", '{"machine": "x"}', '{"other": 1}', "\xff"])
def test_a_damaged_verdict_is_replaced(build: Path, runs: list[bool], text: str) -> None:
    (build / "selftest.json").write_bytes(text.encode("latin-1"))
    first = verdict(build)
    assert verdict(build) == first
    assert len(runs) == 1


def test_a_directory_that_cannot_be_written_has_its_verdict_in_the_cache(
    build: Path, runs: list[bool], tmp_path: Path
) -> None:
    # A directory in the file's place cannot be replaced, not even by root.
    (build / "selftest.json").mkdir()
    before = sorted(build.iterdir())
    first = verdict(build)
    assert verdict(build) == first
    assert len(runs) == 1
    assert sorted(build.iterdir()) == before
    (cached,) = (tmp_path / "cache" / "whisperlib").iterdir()
    assert cached.name.startswith("selftest-")
    # Another directory has another place there.
    other = tmp_path / "other"
    shutil.copytree(build, other, symlinks=True)
    verdict(other)
    assert len(runs) == 2
    assert len(list(cached.parent.iterdir())) == 2


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_directory(build: Path, runs: list[bool], tmp_path: Path) -> None:
    build.chmod(0o555)
    try:
        assert verdict(build) == verdict(build)
    finally:
        build.chmod(0o755)
    assert len(runs) == 1
    assert len(list((tmp_path / "cache" / "whisperlib").iterdir())) == 1


def test_nowhere_to_write_is_no_error(build: Path, runs: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    (build / "selftest.json").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/no/such")
    assert verdict(build)
    assert verdict(build)
    assert len(runs) == 2


def test_libraries_of_somebody_else_are_not_tested(build: Path, runs: list[bool]) -> None:
    (build / "build-info.json").unlink()
    assert verdict(build) is None
    assert runs == []
    assert not (build / "selftest.json").exists()


def test_a_verdict_in_words() -> None:
    assert str(Verdict("m", "b", {})) == "passed"
    assert str(Verdict("m", "b", {"f16": "died with SIGILL", "q4_0": "gave ''"})) == (
        "failed: f16 died with SIGILL, q4_0 gave ''"
    )


# The command, `python -m whisperlib.selftest DIRECTORY`.


def test_main(
    build: Path,
    runs: list[bool],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["selftest", str(build)])
    assert selftest.main() == 1
    assert capsys.readouterr().out == "self-test of fake: failed: q4_0 failed in test 1\n"
    monkeypatch.setattr(sys, "argv", ["selftest", "--gpu", str(build)])
    assert selftest.main() == 1
    assert runs == [False, True]
    (build / "build-info.json").unlink()
    assert selftest.main() == 2
    assert "no build-info.json" in capsys.readouterr().err


def test_the_command_says_nothing_but_its_verdict(library_dir: Path, tmp_path: Path) -> None:
    """No warning of runpy's, which would fail every test where warnings are errors."""
    child = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-m", "whisperlib.selftest", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=assets.PACKAGE.parent,
    )
    assert child.stdout == ""
    assert child.stderr == f"{tmp_path.resolve()} has no build-info.json: it is not a build of this project\n"
    assert child.returncode == 2
