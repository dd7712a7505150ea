"""Builds the encoder and the cross-attention projections of a Whisper model as an OpenVINO graph.

The graph is that of openai/whisper's `model.py` (AudioEncoder, and `key` and `value` of each decoder layer's
cross-attention), with a dynamic time axis. What whisper.cpp does otherwise is done its way: keys are scaled by
(width of a head)^-0.25 (`whisper_build_graph_cross`), values come with the positions last.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import openvino as ov
from openvino import opset13 as op

from whisperlib.encoder.weights import Floats, Weights

MEL, KEYS, VALUES = "mel", "keys", "values"
LAYER_NORM_EPSILON = 1e-5  # torch.nn.LayerNorm's
_IN_FLOAT32 = "in_float32."  # begins the names of the operations that stay in it
# What may not become f16, OpenVINO's CPU plugin does not make bf16 either (`keepOriginalPrecision`, its node.cpp). Its
# Python has no call that sets this attribute.
_KEPT_PRECISION = {"name": "DisablePrecisionConversion", "version": "0", "value": "dynamic:f16"}

Node = Any  # ov.Node: its stubs know none of the operations


def build(weights: Weights) -> ov.Model:
    """Make the graph.

    In: `mel`, float32, shape (1, n_mels, 2 · n_audio_ctx). Out, float16: `keys`, shape
    (n_text_layer, n_audio_ctx, n_text_state), and `values`, shape (n_text_layer, n_text_state, n_audio_ctx).
    """
    header = weights.header
    mel = op.parameter(ov.PartialShape([1, header.n_mels, -1]), np.float32, MEL)
    x = _embed(mel, weights)
    for layer in range(header.n_audio_layer):
        x = _block(x, weights, f"encoder.blocks.{layer}", header.n_audio_head)
    x = _norm(x, weights, "encoder.ln_post")
    keys, values = _cross_attention(x, weights)
    model = ov.Model([op.result(keys, name=KEYS), op.result(values, name=VALUES)], [mel], "whisper_encoder")
    for port, name in zip([*model.inputs, *model.outputs], (MEL, KEYS, VALUES), strict=True):
        port.get_tensor().set_names({name})
    return model


def save(model: ov.Model, xml: Path) -> None:
    """Write the graph, weights in float16, so that in bf16, too, the residual stream is summed and normed in float32.

    Rounded to bf16 after every block, it would have most of the error of the whole encoder.
    """
    ov.save_model(model, xml, compress_to_fp16=True)
    tree = ElementTree.parse(xml)  # noqa: S314  (it was just written)
    for layer in tree.iter("layer"):
        if layer.get("name", "").startswith(_IN_FLOAT32):
            about = layer.find("rt_info")
            about = ElementTree.SubElement(layer, "rt_info") if about is None else about
            ElementTree.SubElement(about, "attribute", _KEPT_PRECISION)
    tree.write(xml)


def _embed(mel: Node, weights: Weights) -> Node:
    """Two convolutions, the second of which halves the time axis, and the positions."""
    x = op.gelu(_convolve(mel, weights, "encoder.conv1", stride=1), "erf")
    x = op.gelu(_convolve(x, weights, "encoder.conv2", stride=2), "erf")
    x = op.transpose(x, np.array([0, 2, 1]))
    length = op.gather(op.shape_of(x), np.array([1]), np.array(0))
    positions = op.slice(
        _constant(weights["encoder.positional_embedding"]), np.array([0]), length, np.array([1]), np.array([0])
    )
    return _in_float32(op.add(x, positions))


def _convolve(x: Node, weights: Weights, name: str, stride: int) -> Node:
    kernel = _constant(weights[f"{name}.weight"])
    convolved = op.convolution(x, kernel, [stride], [1], [1], [1])
    return op.add(convolved, _constant(weights[f"{name}.bias"].reshape(1, -1, 1)))


def _block(x: Node, weights: Weights, name: str, heads: int) -> Node:
    x = _in_float32(op.add(x, _attention(_norm(x, weights, f"{name}.attn_ln"), weights, f"{name}.attn", heads)))
    hidden = _linear(_norm(x, weights, f"{name}.mlp_ln"), weights, f"{name}.mlp.0")
    return _in_float32(op.add(x, _linear(op.gelu(hidden, "erf"), weights, f"{name}.mlp.2")))


def _attention(x: Node, weights: Weights, name: str, heads: int) -> Node:
    query, key, value = (
        op.transpose(
            op.reshape(_linear(x, weights, f"{name}.{part}"), np.array([0, 0, heads, -1]), special_zero=True),
            np.array([0, 2, 1, 3]),
        )
        for part in ("query", "key", "value")
    )
    attended = op.scaled_dot_product_attention(query, key, value)
    merged = op.reshape(op.transpose(attended, np.array([0, 2, 1, 3])), np.array([0, 0, -1]), special_zero=True)
    return _linear(merged, weights, f"{name}.out")


def _cross_attention(x: Node, weights: Weights) -> tuple[Node, Node]:
    """Project for all decoder layers at once, straight into the layout that whisper.cpp keeps."""
    header = weights.header
    layers = [f"decoder.blocks.{layer}.cross_attn" for layer in range(header.n_text_layer)]
    scale = float(header.n_text_state // header.n_text_head) ** -0.25
    keys, values = [], []
    for layer in layers:
        key = op.matmul(x, _constant(weights[f"{layer}.key.weight"] * np.float32(scale)), False, True)
        value = op.matmul(_constant(weights[f"{layer}.value.weight"][None]), x, False, True)
        value = op.add(value, _constant(weights[f"{layer}.value.bias"].reshape(1, -1, 1)))
        # In halves before they are joined, so that only one layer is there in full.
        keys.append(op.convert(key, "f16"))
        values.append(op.convert(value, "f16"))
    return op.concat(keys, axis=0), op.concat(values, axis=0)


def _linear(x: Node, weights: Weights, name: str) -> Node:
    product = op.matmul(x, _constant(weights[f"{name}.weight"]), transpose_a=False, transpose_b=True)
    bias = weights.tensors.get(f"{name}.bias")
    return product if bias is None else op.add(product, _constant(bias.reshape(1, 1, -1)))


def _norm(x: Node, weights: Weights, name: str) -> Node:
    normal = _in_float32(op.mvn(x, np.array([-1]), True, LAYER_NORM_EPSILON, "inside_sqrt"))
    scaled = op.multiply(normal, _constant(weights[f"{name}.weight"]))
    return op.add(scaled, _constant(weights[f"{name}.bias"]))


def _in_float32(node: Node) -> Node:
    node.set_friendly_name(_IN_FLOAT32 + node.get_friendly_name())
    return node


def _constant(values: Floats) -> Node:
    return op.constant(np.ascontiguousarray(values, np.float32))
