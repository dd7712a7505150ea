"""The graph as it is written, and in which precision OpenVINO runs what it holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from whisperlib import encoder
from whisperlib.encoder import files, graph
from whisperlib.encoder.graph import MEL


@pytest.fixture(scope="module")
def xml(accelerated_model: Path) -> Path:
    return encoder.find(accelerated_model).graph


def compiled(xml: Path, precision: str) -> ov.CompiledModel:
    return ov.Core().compile_model(str(xml), "CPU", {"INFERENCE_PRECISION_HINT": precision})


def encode(model: ov.CompiledModel) -> list[np.ndarray]:
    mel = np.random.default_rng(7).standard_normal((1, 80, 3000), np.float32)
    return [np.array(values, np.float32) for values in model({MEL: mel}).values()]


def distance(got: list[np.ndarray], expected: list[np.ndarray]) -> float:
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(got, expected, strict=True))


@pytest.mark.skipif("bf16" not in files.precisions(), reason="this CPU does not compute in bf16")
class TestInBf16:
    def test_the_residual_stream_is_summed_and_normed_in_float32(self, xml: Path) -> None:
        nodes = [node.get_rt_info() for node in compiled(xml, "bf16").get_runtime_model().get_ops()]
        kept = [about for about in nodes if "in_float32." in about["originalLayersNames"].astype(str)]
        assert {about["layerType"].astype(str) for about in kept} == {"Eltwise", "MVN"}
        assert {about["outputPrecisions"].astype(str) for about in kept} == {"f32"}
        work = [about for about in nodes if about["layerType"].astype(str) == "FullyConnected"]
        assert {about["outputPrecisions"].astype(str) for about in work} == {"bf16"}

    def test_that_makes_it_more_exact(self, xml: Path, tmp_path: Path) -> None:
        without = tmp_path / "without.xml"
        without.write_text(xml.read_text().replace("DisablePrecisionConversion", "unknown"))
        without.with_suffix(".bin").symlink_to(xml.with_suffix(".bin"))
        exact = encode(compiled(xml, "f32"))
        assert distance(encode(compiled(xml, "bf16")), exact) < 0.9 * distance(encode(compiled(without, "bf16")), exact)


def test_what_stays_in_float32_is_named_in_the_file(tmp_path: Path) -> None:
    x = ov.opset13.parameter([1, 4], np.float32, "x")
    kept = graph._in_float32(ov.opset13.add(x, x))
    graph.save(ov.Model([ov.opset13.multiply(kept, x)], [x], "m"), tmp_path / "m.xml")
    read = ov.Core().read_model(tmp_path / "m.xml")
    marked = [node for node in read.get_ops() if "DisablePrecisionConversion_0" in node.get_rt_info()]
    assert [node.get_type_name() for node in marked] == ["Add"]
