"""From the PyTorch model to the ggml file that whisper.cpp reads, and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tools.ggml_file import MICRO_MODEL, Header, read_preamble, read_tensors, tensor_layout, write_tensor
from tools.micro_model.model import AUDIO_CONTEXT, MELS, TEXT_CONTEXT, UNUSED, Micro, Size
from tools.micro_model.tokens import FIRST_TIMESTAMP, SPECIAL, TIMESTAMPS, Tokeniser, TokenTable

VOCABULARY = 51865


def export_model(model: Micro, table: TokenTable, path: Path) -> None:
    """Write `model` as an f16 ggml file with Whisper's whole multilingual vocabulary."""
    size = model.size
    header = Header(
        VOCABULARY, AUDIO_CONTEXT, size.width, size.heads, size.encoder_layers,
        TEXT_CONTEXT, size.width, size.heads, size.decoder_layers, MELS, ftype=1,
    )  # fmt: skip
    values = {name: value.detach().float().cpu() for name, value in model.state_dict().items()}
    values["encoder.positional_embedding"] = model.encoder.positional_embedding.cpu()
    for name in ("encoder.positional_embedding", "decoder.positional_embedding"):
        values[name] = values[name].half().float()  # f32 by format; f16's precision compresses better
    with torch.no_grad():
        embedding = model.decoder.table().cpu()
    full = torch.zeros(VOCABULARY, size.width)
    full[:, -1] = UNUSED
    full[[*table.text, *SPECIAL]] = embedding[: table.first_timestamp]
    full[FIRST_TIMESTAMP : FIRST_TIMESTAMP + TIMESTAMPS] = embedding[table.first_timestamp :]
    values["decoder.token_embedding.weight"] = full
    values["decoder.ln.weight"][-1] = 0
    values["decoder.ln.bias"][-1] = 1

    with MICRO_MODEL.open("rb") as file:
        preamble = replace(read_preamble(file), header=header)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(preamble.to_bytes())
        for spec in tensor_layout(header):
            array = values[spec.name].numpy().reshape(spec.shape).astype(spec.dtype)
            write_tensor(file, spec.name, array)
    partial.replace(path)


def import_model(path: Path) -> tuple[Micro, TokenTable]:
    """Read a file of `export_model`: the model, its training heads fresh, and its tokens.

    Timestamps are fitted, not copied: their rows change by about the rounding of f16.
    """
    with path.open("rb") as file:
        preamble = read_preamble(file)
        tensors = {name: torch.from_numpy(values.astype(np.float32)) for name, values in read_tensors(file)}
    header = preamble.header
    full = tensors.pop("decoder.token_embedding.weight")
    text = [token for token in range(len(preamble.vocabulary)) if full[token, -1] == 0 and token not in SPECIAL]
    table = TokenTable(Tokeniser(preamble.vocabulary), text)
    size = Size(header.n_audio_state, header.n_audio_head, header.n_audio_layer, header.n_text_layer)
    model = Micro(size, table.n_text, len(SPECIAL))

    tensors.pop("encoder.positional_embedding")
    state = model.state_dict()
    for name, values in tensors.items():
        state[name] = values.reshape(state[name].shape)
    state["decoder.named_embedding"] = full[[*text, *SPECIAL]]
    fit = _fit(model.decoder.timestamp_positions, full[FIRST_TIMESTAMP : FIRST_TIMESTAMP + TIMESTAMPS])
    state["decoder.timestamp_map.weight"], state["decoder.timestamp_map.bias"] = fit
    model.load_state_dict(state)
    return model, table


def _fit(positions: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of the linear map from `positions` to `rows`, by least squares.

    The slow sinusoids are nearly constant: without the ridge term their weights grow huge and cancel, which
    they no longer do in bfloat16.
    """
    inputs = torch.cat([positions, torch.ones(len(positions), 1)], 1).double()
    ridge = 0.01 * torch.eye(inputs.shape[1], dtype=torch.double)
    solution = torch.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ rows.double()).float()
    return solution[:-1].T.contiguous(), solution[-1]
