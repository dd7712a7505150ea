"""Which encoder runs, and what is said of it."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whisperlib import WhisperLibraryAdapter, assets, encoder, system
from whisperlib.binding import EncoderWindow
from whisperlib.encoder import Choice, files
from whisperlib.encoder.engine import OpenVinoEncoder
from whisperlib.errors import EngineError, ModelError, ModelFileError, ModelNotFoundError
from whisperlib.options import Profile
from whisperlib.pcm import Samples
from whisperlib.settings import Settings


def choose(
    model: Path, wanted: str = "auto", precision: str = "auto", *, device: str = "cpu", takes_encoder: bool = True
) -> Choice:
    return encoder.choose(model, wanted=wanted, precision=precision, device=device, takes_encoder=takes_encoder)


def test_what_was_made_is_taken(accelerated_model: Path) -> None:
    choice = choose(accelerated_model)
    assert str(choice) == f"openvino {files.precisions()[0]}"
    assert choice.reason.startswith("made and verified; it differs from ggml's encoder by ")
    assert choose(accelerated_model, "openvino", "f32").reason.startswith("asked for; ")


def test_ggml_by_name(accelerated_model: Path) -> None:
    choice = choose(accelerated_model, "ggml")
    assert (str(choice), choice.reason, choice.accelerated) == ("ggml", "asked for", None)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"device": "cuda"}, "runs on a CPU, and the model on cuda"),
        ({"takes_encoder": False}, "these native libraries take no other encoder"),
        ({"precision": "int8"}, r"no OpenVINO encoder beside it: .*--int8"),
    ],
)
def test_auto_falls_back_and_says_why_where_a_name_fails(
    accelerated_model: Path, changes: dict[str, Any], reason: str
) -> None:
    choice = choose(accelerated_model, **changes)
    assert choice.name == "ggml"
    with pytest.raises(ModelError, match=reason) as raised:
        choose(accelerated_model, "openvino", **changes)
    assert choice.reason == str(raised.value)


def test_a_precision_that_this_cpu_has_not(accelerated_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whisperlib.system.cpu_flags", lambda: ("avx2",))
    assert str(choose(accelerated_model)) == "openvino f32"
    with pytest.raises(ModelError, match="this CPU does not compute in bf16: give f32"):
        choose(accelerated_model, "openvino", "bf16")


def test_one_that_was_not_compared_in_the_best_precision_runs_in_the_next(
    accelerated_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whisperlib.encoder.files.precisions", lambda: ("fp8", "f32"))
    assert str(choose(accelerated_model)) == "openvino f32"
    monkeypatch.setattr("whisperlib.encoder.files.precisions", lambda: ("fp8",))
    assert "was not compared with ggml's encoder in auto" in choose(accelerated_model).reason


@pytest.mark.parametrize("profile", ["balanced", "fast"])
def test_an_adapter_runs_it_and_says_so(
    accelerated_model: Path,
    references: dict[str, dict[str, Any]],
    adapter: WhisperLibraryAdapter,
    sample: Callable[[str], Samples],
    *,
    profile: Profile,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert adapter.config.encoder == "ggml"
    assert "no OpenVINO encoder beside it" in adapter.config.encoder_reason
    caplog.set_level(logging.INFO, "whisperlib")
    with WhisperLibraryAdapter(accelerated_model, threads=1, concurrency=2) as accelerated:
        assert accelerated.config.encoder == f"openvino {files.precisions()[0]}"
        assert accelerated.config.encoder_reason.startswith("made and verified; it differs from ggml's encoder by ")
        assert f"encoder {accelerated.config.encoder} ({accelerated.config.encoder_reason})" in caplog.text
        for name in references:
            expected = adapter.transcribe(sample(name), profile=profile)
            got = accelerated.transcribe(sample(name), profile=profile)
            assert (got.text, got.language) == (expected.text, expected.language), name


def test_an_adapter_that_is_asked_for_it_fails_without(tmp_path: Path) -> None:
    model = Path(shutil.copy(assets.MICRO_MODEL, tmp_path))
    with pytest.raises(ModelNotFoundError, match="whisperlib models accelerate"):
        WhisperLibraryAdapter(model, settings=Settings(encoder="openvino"))


@pytest.fixture
def own_model(accelerated_model: Path, tmp_path: Path) -> Path:
    """Path of a model with its encoder that a test may damage."""
    shutil.copytree(accelerated_model.parent, tmp_path / "model")
    return tmp_path / "model" / accelerated_model.name


def cut_off(model: Path) -> None:
    weights = encoder.find(model).graph.with_suffix(".bin")
    weights.write_bytes(weights.read_bytes()[:1000])


def say_of_it(model: Path, /, **changes: object) -> None:
    about = encoder.find(model).directory / files.ABOUT
    about.write_text(json.dumps({**json.loads(about.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def test_a_cut_off_one_is_left_for_ggmls_unless_it_was_asked_for(own_model: Path) -> None:
    cut_off(own_model)
    with WhisperLibraryAdapter(own_model, threads=1) as whisper:
        assert whisper.config.encoder == "ggml"
        assert "encoder.xml cannot be used" in whisper.config.encoder_reason
    with pytest.raises(ModelFileError, match=r"encoder\.xml cannot be used: .*; make it anew"):
        WhisperLibraryAdapter(own_model, settings=Settings(encoder="openvino"))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut_off, "encoder.xml cannot be used: "),
        (partial(say_of_it, format=1), "was made by another version of whisperlib: "),
        (partial(say_of_it, model="another"), "was made from another file than ggml-micro-f16.bin: "),
    ],
)
def test_a_refused_one_is_warned_of(
    own_model: Path, damage: Callable[[Path], None], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    damage(own_model)
    WhisperLibraryAdapter(own_model, threads=1).close()
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert line.startswith(
        f"the OpenVINO encoder beside {own_model} is not used, and ggml's takes several times as long"
    )
    assert reason in line
    assert "`whisperlib models accelerate" in line


def test_one_that_is_not_there_is_no_cause_for_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    WhisperLibraryAdapter(Path(shutil.copy(assets.MICRO_MODEL, tmp_path)), threads=1).close()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


class TestMeasurement:
    """Two cores, and a cache of measurements of the test's own."""

    SETTINGS = Settings(measure_threads=True)

    @pytest.fixture(autouse=True)
    def _machine(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(system, "cpu_allowance", lambda: system.CpuAllowance(2, None, 2, 2))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def test_it_is_done_with_the_encoder_that_will_run(
        self, accelerated_model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shared: list[tuple[int, int]] = []

        def share(engine: OpenVinoEncoder, threads: int, concurrency: int) -> None:
            shared.append((threads, concurrency))
            real(engine, threads, concurrency)

        real = OpenVinoEncoder.share
        monkeypatch.setattr(OpenVinoEncoder, "share", share)
        with WhisperLibraryAdapter(accelerated_model, settings=Settings(measure_threads=True, encoder="ggml")) as ggml:
            assert ggml.config.sharing_reason.startswith("measured, ")
        assert shared == []
        with WhisperLibraryAdapter(accelerated_model, settings=self.SETTINGS) as first:
            config = first.config
            assert config.encoder.startswith("openvino ")
            assert config.sharing_reason.startswith("measured, ")
        assert list(dict.fromkeys(shared)) == [(1, 2), (2, 1)]
        assert shared[-1] == (config.threads, config.concurrency)
        shared.clear()
        with WhisperLibraryAdapter(accelerated_model, settings=self.SETTINGS) as second:
            assert second.config.sharing_reason.startswith("remembered, ")
        assert shared == [(config.threads, config.concurrency)]

    def test_where_openvino_refuses_the_files_it_is_ggmls_that_is_measured(self, own_model: Path) -> None:
        cut_off(own_model)
        for how in ("measured, ", "remembered, "):
            with WhisperLibraryAdapter(own_model, settings=self.SETTINGS) as whisper:
                assert whisper.config.encoder == "ggml"
                assert whisper.config.sharing_reason.startswith(how)
        ggml = Settings(measure_threads=True, encoder="ggml")
        with WhisperLibraryAdapter(own_model, settings=ggml) as whisper:
            assert whisper.config.sharing_reason.startswith("remembered, ")

    def test_an_encoder_that_gives_no_numbers_is_found(
        self, accelerated_model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def encode(_: OpenVinoEncoder, window: EncoderWindow) -> None:
            window.out.keys.fill(np.nan)
            window.out.values.fill(np.nan)

        monkeypatch.setattr(OpenVinoEncoder, "__call__", encode)
        with pytest.raises(EngineError, match="computes no numbers on a bundled clip"):
            WhisperLibraryAdapter(accelerated_model, settings=self.SETTINGS)
