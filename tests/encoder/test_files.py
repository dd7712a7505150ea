"""The files beside the model: made whole or not at all, and believed only if they are the model's."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest

from whisperlib import assets, encoder
from whisperlib.binding import CrossAttention, Library, State
from whisperlib.encoder import files
from whisperlib.errors import DownloadError, ModelError, ModelFileError, ModelNotFoundError


@pytest.fixture
def copy(accelerated_model: Path, tmp_path: Path) -> Path:
    """An accelerated model that a test may spoil."""
    shutil.copytree(accelerated_model.parent, tmp_path / "model")
    return tmp_path / "model" / accelerated_model.name


def test_lies_beside_the_model_for_everybody_to_read(accelerated_model: Path) -> None:
    found = encoder.find(accelerated_model)
    assert found.directory == accelerated_model.parent / "ggml-micro-f16-encoder-float"
    assert sorted(path.name for path in found.directory.iterdir()) == ["about.json", "encoder.bin", "encoder.xml"]
    assert stat.S_IMODE(found.directory.stat().st_mode) == 0o755
    assert set(found.relative_errors) == set(files.precisions())
    assert not [path for path in accelerated_model.parent.iterdir() if path.name.endswith(".part")]


def test_without_one_it_says_how_to_make_it(tmp_path: Path) -> None:
    model = Path(shutil.copy(assets.MICRO_MODEL, tmp_path))
    with pytest.raises(ModelNotFoundError, match=r"no OpenVINO encoder beside it: run `whisperlib models accelerate /"):
        encoder.find(model)
    with pytest.raises(ModelNotFoundError, match="--int8"):
        encoder.find(model, "int8")


def test_that_of_another_model_file_is_not_believed(copy: Path) -> None:
    data = bytearray(copy.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 400_000] = bytes(400_000)
    copy.write_bytes(data)
    with pytest.raises(ModelFileError, match=r"was made from another file than ggml-micro-f16\.bin"):
        encoder.find(copy)


@pytest.mark.parametrize("about", ["", "[]", "{}", '{"format": "x"}'])
def test_a_damaged_description_is_not_believed(copy: Path, about: str) -> None:
    (encoder.find(copy).directory / "about.json").write_text(about)
    with pytest.raises(ModelFileError, match=r"about\.json cannot be read: .*; run `whisperlib models accelerate"):
        encoder.find(copy)


def test_errors_that_are_no_table_are_not_believed(copy: Path) -> None:
    path = encoder.find(copy).directory / "about.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"relative_errors": 3}))
    with pytest.raises(ModelFileError, match=r"relative_errors is no table of errors; run `whisperlib models"):
        encoder.find(copy)


@pytest.mark.parametrize("name", ["encoder.xml", "encoder.bin"])
def test_one_that_lacks_a_file_is_not_believed(copy: Path, name: str) -> None:
    (encoder.find(copy).directory / name).unlink()
    with pytest.raises(ModelFileError, match=f"lacks {name}: run `whisperlib models accelerate"):
        encoder.find(copy)


def test_one_of_another_format_is_not_believed(copy: Path) -> None:
    path = encoder.find(copy).directory / "about.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": files.FORMAT + 1}))
    with pytest.raises(ModelFileError, match="another version of whisperlib"):
        encoder.find(copy)


def test_one_that_differs_too_much_is_thrown_away(
    tmp_path: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path(shutil.copy(assets.MICRO_MODEL, tmp_path))
    real = State.encode
    turns = iter(range(9))

    def first_one_reversed(state: State, samples: object, n_threads: int) -> CrossAttention:
        result = real(state, samples, n_threads)  # type: ignore[arg-type]
        return CrossAttention(-result.keys, result.values) if next(turns) == 0 else result

    monkeypatch.setattr(State, "encode", first_one_reversed)
    with pytest.raises(ModelFileError, match=r"differs from ggml's by 2\.0.*it is not used"):
        encoder.accelerate(model, library)
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == [model.name]


def test_a_failure_leaves_the_old_one(copy: Path, library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    before = encoder.find(copy)
    monkeypatch.setattr(files, "MAX_RELATIVE_ERROR", 0.0)
    with pytest.raises(ModelFileError):
        encoder.accelerate(copy, library)
    assert encoder.find(copy) == before
    assert before.graph.exists()


def test_is_made_anew_in_place(copy: Path, library: Library) -> None:
    steps: list[str] = []
    (encoder.find(copy).directory / "about.json").write_text("spoilt")
    encoder.accelerate(copy, library, report=steps.append)
    assert encoder.find(copy).graph.exists()
    assert steps[0] == "reading ggml-micro-f16.bin"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_directory_is_told(tmp_path: Path, library: Library) -> None:
    model = Path(shutil.copy(assets.MICRO_MODEL, tmp_path))
    tmp_path.chmod(0o555)
    with pytest.raises(DownloadError, match="cannot be written"):
        encoder.accelerate(model, library)


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch, library: Library) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ModelError, match=r"openvino and gguf not installed: pip install 'whisperlib\[openvino\]'"):
        encoder.accelerate(assets.MICRO_MODEL, library)


def test_int8_is_made_by_name(tmp_path: Path, library: Library) -> None:
    pytest.importorskip("nncf")
    model = Path(shutil.copy(assets.MICRO_MODEL, tmp_path))
    made = encoder.accelerate(model, library, "int8")
    assert made.directory.name.endswith("-encoder-int8")
    assert all(0.01 < error < files.MAX_INT8_RELATIVE_ERROR for error in made.relative_errors.values())
    assert np.isfinite(list(made.relative_errors.values())).all()
