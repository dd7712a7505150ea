"""Choice of the native libraries. The search is the real one, over directories with empty files; the driver and
the self-test are doubles."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from whisperlib import binding, selftest, variants
from whisperlib.binding import Candidate, CudaAvailability
from whisperlib.errors import LibraryLoadError, LibraryNotFoundError, OptionError
from whisperlib.selftest import Verdict

NO_DRIVER = CudaAvailability(False, None, 0, "no NVIDIA driver (libcuda.so.1) on this machine")
ONE_GPU = CudaAvailability(True, "12.4", 1, "ready")


@dataclass
class Doubles:
    """What the driver says, which variants fail their self-test, and which were tested, with or without a GPU."""

    cuda: CudaAvailability = NO_DRIVER
    failing: dict[str, str] = field(default_factory=dict)
    tested: list[tuple[str, bool]] = field(default_factory=list)
    drivers_asked: int = 0

    def ask_driver(self) -> CudaAvailability:
        self.drivers_asked += 1
        return self.cuda

    def verdict(self, candidate: Candidate, *, use_gpu: bool = False) -> Verdict | None:
        self.tested.append((candidate.variant, use_gpu))
        if not candidate.build:
            return None
        why = self.failing.get(candidate.variant)
        return Verdict("machine", "build", {"q5_1": why} if why else {})


@pytest.fixture
def doubles(monkeypatch: pytest.MonkeyPatch) -> Doubles:
    made = Doubles()
    monkeypatch.setattr(binding, "ask_driver", made.ask_driver)
    monkeypatch.setattr(binding, "loaded", lambda: None)
    monkeypatch.setattr(selftest, "verdict", made.verdict)
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    return made


@pytest.fixture
def builds(tmp_path: Path) -> Callable[..., Path]:
    """Make a directory with a sub-directory per variant; `None` is a library that is somebody else's."""

    def make(*names: str | None, at: str = "lib") -> Path:
        for name in names:
            directory = tmp_path / at / (name or "")
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "libwhisper.so").touch()
            if name:
                (directory / "build-info.json").write_text(json.dumps({"variant": name}), encoding="utf-8")
        return tmp_path / at

    return make


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (("auto", NO_DRIVER, ("cpu", "cpu-portable")), ("cpu", "cpu")),
        (("auto", NO_DRIVER, ("cpu-portable",)), ("cpu-portable", "cpu")),
        (("auto", NO_DRIVER, ("cuda", "cpu-portable", "cpu")), ("cpu", "cpu")),
        (("auto", NO_DRIVER, ("cuda",)), ("cuda", "cpu")),  # it runs on the CPU too
        (("auto", ONE_GPU, ("cuda", "cpu")), ("cuda", "cuda")),
        (("cuda", ONE_GPU, ("cuda", "cpu")), ("cuda", "cuda")),
        (("cpu", ONE_GPU, ("cuda", "cpu")), ("cpu", "cpu")),
        (("cpu", ONE_GPU, ("cuda",)), ("cuda", "cpu")),
        (("auto", NO_DRIVER, (None,)), ("unknown", "cpu")),
        (("auto", NO_DRIVER, (None, "cpu")), ("unknown", "cpu")),  # the directory itself is looked at first
    ],
)
def test_the_best_that_runs_here(
    doubles: Doubles,
    builds: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
    case: tuple[str, CudaAvailability, tuple[str | None, ...]],
    expected: tuple[str, str],
) -> None:
    device, doubles.cuda, names = case
    directory = builds(*names)
    choice = variants.choose(device, directory)
    assert (choice.variant, choice.device) == expected
    assert choice.directory == (directory / choice.variant if choice.variant != "unknown" else directory)
    assert (choice.origin, choice.passed_over) == ("argument", ())
    assert doubles.tested == [(choice.variant, choice.device == "cuda")]
    assert warnings(caplog) == []


def test_the_driver_is_not_woken_for_the_cpu(doubles: Doubles, builds: Callable[..., Path]) -> None:
    """Asking it initialises CUDA in the process."""
    variants.choose("cpu", builds("cuda", "cpu"))
    assert doubles.drivers_asked == 0


@pytest.mark.parametrize("device", ["gpu", "", "CUDA", "cuda:0", "cpu "])
def test_an_unknown_device(doubles: Doubles, builds: Callable[..., Path], device: str) -> None:
    with pytest.raises(OptionError) as caught:
        variants.choose(device, builds("cpu"))
    assert str(caught.value) == f"device = {device!r}: give auto, cpu, cuda"
    assert doubles.tested == []


def test_cuda_without_a_driver(doubles: Doubles, builds: Callable[..., Path]) -> None:
    directory = builds("cuda", "cpu")
    with pytest.raises(OptionError) as caught:
        variants.choose("cuda", directory)
    message = str(caught.value)
    assert message.startswith("device = 'cuda': no build can be used: ")
    assert f"{directory}/cuda: no NVIDIA driver" in message
    assert "\n" not in message
    assert doubles.tested == []


@pytest.mark.parametrize(
    "answer", [CudaAvailability(False, None, 0, "cuInit returned 999"), CudaAvailability(False, "12.4", 0, "no device")]
)
def test_cuda_with_a_driver_that_cannot(
    doubles: Doubles, builds: Callable[..., Path], answer: CudaAvailability
) -> None:
    doubles.cuda = answer
    with pytest.raises(OptionError, match=answer.reason):
        variants.choose("cuda", builds("cuda"))
    assert variants.choose("auto", builds("cuda")).device == "cpu"


def test_cuda_with_no_cuda_build(doubles: Doubles, builds: Callable[..., Path]) -> None:
    doubles.cuda = ONE_GPU
    with pytest.raises(OptionError, match="cpu: not a CUDA build"):
        variants.choose("cuda", builds("cpu", "cpu-portable"))
    assert doubles.tested == []


def test_a_gpu_that_goes_unused_is_said(
    doubles: Doubles, builds: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    doubles.cuda = ONE_GPU
    assert variants.choose("auto", builds("cpu")).device == "cpu"
    assert warnings(caplog) == ["a GPU is there but no CUDA build that works: run `make native-cuda`"]


def test_a_failed_self_test_sets_a_build_aside(
    doubles: Doubles, builds: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    doubles.failing = {"cpu": "died with SIGILL"}
    directory = builds("cpu", "cpu-portable")
    choice = variants.choose("auto", directory)
    assert choice.variant == "cpu-portable"
    assert choice.passed_over == (f"{directory}/cpu: self-test failed: q5_1 died with SIGILL",)
    assert doubles.tested == [("cpu", False), ("cpu-portable", False)]
    assert warnings(caplog) == [f"set aside the libraries of {directory}/cpu: self-test failed: q5_1 died with SIGILL"]


def test_a_cuda_build_that_fails_leaves_the_cpu(
    doubles: Doubles, builds: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    doubles.cuda, doubles.failing = ONE_GPU, {"cuda": "died with SIGSEGV"}
    choice = variants.choose("auto", builds("cuda", "cpu"))
    assert (choice.variant, choice.device) == ("cpu", "cpu")
    assert doubles.tested == [("cuda", True), ("cpu", False)]
    assert len(warnings(caplog)) == 2
    with pytest.raises(OptionError, match=r"cuda: self-test failed.*cpu: not a CUDA build"):
        variants.choose("cuda", builds("cuda", "cpu"))


def test_when_all_fail_all_are_named(doubles: Doubles, builds: Callable[..., Path]) -> None:
    doubles.failing = {"cpu": "died with SIGILL", "cpu-portable": "gave ''"}
    with pytest.raises(LibraryLoadError) as caught:
        variants.choose("auto", builds("cpu", "cpu-portable"))
    assert "cpu: self-test failed: q5_1 died with SIGILL; " in str(caught.value)
    assert "cpu-portable: self-test failed: q5_1 gave ''" in str(caught.value)


def test_somebody_else_s_library_is_taken_untested(doubles: Doubles, builds: Callable[..., Path]) -> None:
    doubles.failing = {"unknown": "it would fail"}
    assert variants.choose("auto", builds(None)).variant == "unknown"


def test_places_are_searched_in_order(
    doubles: Doubles, builds: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    argument, environment = builds("cpu", at="argument"), builds("cpu", at="environment")
    model, path = builds("cpu-portable", at="model"), builds("cpu", at="path")
    own = builds("cpu", at="own")
    monkeypatch.setattr(binding.search, "own_build_root", lambda: own)
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{path}:/no/such/directory:")

    def origin(failing: str = "", **where: Any) -> tuple[str, str]:
        doubles.failing = {failing: "failed"}
        choice = variants.choose("auto", **where)
        return choice.origin, str(choice.directory.parent.name)

    assert origin(model_dir=model) == ("model directory", "model")
    assert origin("cpu-portable", model_dir=model) == ("LD_LIBRARY_PATH", "path")
    assert origin() == ("LD_LIBRARY_PATH", "path")
    monkeypatch.delenv("LD_LIBRARY_PATH")
    assert origin() == ("own build", "own")
    monkeypatch.setenv("WHISPER_LIB_DIR", str(environment))
    assert origin(model_dir=model) == ("WHISPER_LIB_DIR", "environment")
    assert origin(model_dir=model, library_dir=argument) == ("argument", "argument")
    # What was chosen by name is not replaced by something else.
    with pytest.raises(LibraryLoadError):
        origin("cpu", library_dir=argument)
    with pytest.raises(LibraryNotFoundError, match="no/such"):
        origin(library_dir="/no/such")


def test_what_the_process_has_loaded_is_the_choice(
    doubles: Doubles, builds: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = builds("cuda", "cpu", "cpu-portable")
    doubles.cuda = ONE_GPU
    monkeypatch.setattr(binding, "loaded", lambda: SimpleNamespace(directory=directory / "cpu-portable"))
    assert variants.choose("auto", directory).variant == "cpu-portable"
    with pytest.raises(OptionError, match="cpu-portable: not a CUDA build"):
        variants.choose("cuda", directory)
    # One from elsewhere does not hide what is asked for: loading it says what is wrong.
    monkeypatch.setattr(binding, "loaded", lambda: SimpleNamespace(directory=Path("/elsewhere")))
    assert variants.choose("auto", directory).variant == "cuda"
