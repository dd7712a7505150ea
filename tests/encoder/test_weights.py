"""The encoder's tensors, read from every weight type."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from whisperlib import assets, models
from whisperlib.encoder import weights
from whisperlib.errors import ModelFileError


def test_reads_the_encoder_and_the_cross_attention_only() -> None:
    read = weights.read(assets.MICRO_MODEL)
    names = set(read.tensors)
    assert "encoder.conv1.weight" in names
    assert "decoder.blocks.2.cross_attn.value.bias" in names
    assert not any(name.endswith("query.weight") for name in names if name.startswith("decoder"))
    assert "decoder.token_embedding.weight" not in names
    assert read["encoder.conv1.weight"].shape == (128, 80, 3)
    assert read["encoder.blocks.0.mlp.0.weight"].shape == (512, 128)
    assert all(tensor.dtype == np.float32 and np.isfinite(tensor).all() for tensor in read.tensors.values())


@pytest.mark.parametrize(
    ("kind", "tolerance"), [("q8_0", 0.01), ("q5_1", 0.06), ("q5_0", 0.07), ("q4_1", 0.11), ("q4_0", 0.13)]
)
def test_a_quantised_file_holds_nearly_the_same_numbers(tmp_path: Path, kind: str, tolerance: float) -> None:
    models.quantize(assets.MICRO_MODEL, tmp_path / "model.bin", kind)
    exact, read = weights.read(assets.MICRO_MODEL), weights.read(tmp_path / "model.bin")
    assert set(read.tensors) == set(exact.tensors)
    for name, tensor in exact.tensors.items():
        distance = np.linalg.norm(read[name] - tensor) / max(float(np.linalg.norm(tensor)), 1e-6)
        assert distance <= tolerance, name
    matrix = "encoder.blocks.0.attn.query.weight"
    assert not np.array_equal(read[matrix], exact[matrix])


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    cut = tmp_path / "cut.bin"
    cut.write_bytes(assets.MICRO_MODEL.read_bytes()[:-1000])
    with pytest.raises(ModelFileError, match="cut off"):
        weights.read(cut)
