"""The Whisper architecture in PyTorch, as small as wanted, with softmax over the used tokens only.

Parameters carry Whisper's own names, so that export.py has little to translate. Radford et al. 2022, "Robust
Speech Recognition via Large-Scale Weak Supervision"; details as in whisper.cpp's `src/whisper.cpp`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tools.micro_model.tokens import TIMESTAMPS

AUDIO_CONTEXT, TEXT_CONTEXT, MELS = 1500, 448, 80
# Rows of unused tokens are UNUSED in the last dimension, which the final norm sets to 1 and used rows leave at 0:
# their logits are -50, so they never win, and their rows compress to nothing.
UNUSED = -50.0


@dataclass(frozen=True)
class Size:
    """Dimensions. Two decoder layers are not possible: whisper.cpp takes such a model for a distilled one."""

    width: int = 128
    heads: int = 2
    encoder_layers: int = 6
    decoder_layers: int = 3


class Attention(nn.Module):
    """`weights` holds the last call's attention, (batch, heads, queries, keys), if `keep_weights` is set."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.keep_weights = False
        self.weights: Tensor | None = None
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, source: Tensor, causal: bool = False) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(x), self.key(source), self.value(source))
        )
        queries, keys = query.shape[2], key.shape[2]
        if (x.is_cuda and not self.keep_weights) or queries * keys > 900 * 900:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
        else:  # on a CPU twice as fast as the fused kernel's backward pass, up to some 900 frames
            scores = query @ key.mT * query.shape[-1] ** -0.5
            if causal:
                scores = scores + torch.full_like(scores[0, 0], -1e4).triu(1)
            weights = scores.softmax(-1)
            self.weights = weights if self.keep_weights else None
            mixed = weights.to(value.dtype) @ value
        attended: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return attended


class Block(nn.Module):
    def __init__(self, width: int, heads: int, cross: bool) -> None:
        super().__init__()
        self.attn_ln = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.causal = cross
        if cross:
            self.cross_attn_ln = nn.LayerNorm(width)
            self.cross_attn = Attention(width, heads)
        self.mlp_ln = nn.LayerNorm(width)
        # whisper.cpp computes the tanh form.
        gelu = nn.GELU(approximate="tanh")
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), gelu, nn.Linear(4 * width, width))

    def forward(self, x: Tensor, source: Tensor | None = None) -> Tensor:
        normed = self.attn_ln(x)
        x = x + self.attn(normed, normed, causal=self.causal)
        if source is not None:
            x = x + self.cross_attn(self.cross_attn_ln(x), source)
        mixed: Tensor = x + self.mlp(self.mlp_ln(x))
        return mixed


class Encoder(nn.Module):
    positional_embedding: Tensor

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(MELS, size.width, 3, padding=1)
        self.conv2 = nn.Conv1d(size.width, size.width, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(Block(size.width, size.heads, False) for _ in range(size.encoder_layers))
        self.ln_post = nn.LayerNorm(size.width)
        self.register_buffer("positional_embedding", sinusoids(AUDIO_CONTEXT, size.width), persistent=False)

    def forward(self, mels: Tensor, offsets: Tensor) -> Tensor:
        """(batch, 80, 2 n) -> (batch, n, width); item i's first frame is at position offsets[i]."""
        x = F.gelu(self.conv1(mels), approximate="tanh")
        x = F.gelu(self.conv2(x), approximate="tanh").mT
        places = offsets[:, None] + torch.arange(x.shape[1], device=x.device)
        x = x + self.positional_embedding[places]
        for block in self.blocks:
            x = block(x)
        normed: Tensor = self.ln_post(x)
        return normed


class Decoder(nn.Module):
    timestamp_positions: Tensor
    used: Tensor

    def __init__(self, size: Size, n_named: int) -> None:
        super().__init__()
        width = size.width
        self.named_embedding = nn.Parameter(torch.randn(n_named, width) * 0.05)
        # A timestamp's embedding is a linear map of the sinusoids of its time: 1501 rows learn as one.
        self.timestamp_map = nn.Linear(width, width)
        with torch.no_grad():
            self.timestamp_map.weight.copy_(0.07 * torch.eye(width) + 0.003 * torch.randn(width, width))
            self.timestamp_map.bias.zero_()
        self.positional_embedding = nn.Parameter(sinusoids(TEXT_CONTEXT, width) * 0.05)
        self.blocks = nn.ModuleList(Block(width, size.heads, True) for _ in range(size.decoder_layers))
        self.ln = nn.LayerNorm(width)
        self.register_buffer("timestamp_positions", sinusoids(TIMESTAMPS, width), persistent=False)
        self.register_buffer("used", torch.ones(width), persistent=False)
        self.used[-1] = 0

    def table(self) -> Tensor:
        """Embeddings of the used tokens, (compact ids, width)."""
        return torch.cat([self.named_embedding, self.timestamp_map(self.timestamp_positions)]) * self.used

    def forward(self, tokens: Tensor, audio: Tensor, rows: Tensor) -> Tensor:
        """Logits at `rows` of the flattened (batch, length) `tokens`: (rows, compact ids)."""
        table = self.table()
        unknown = torch.zeros_like(table[:1])
        unknown[0, -1] = UNUSED
        x = F.embedding(tokens, torch.cat([table, unknown])) + self.positional_embedding[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, audio)
        return F.linear(self.ln(x.flatten(0, 1)[rows]) * self.used, table)


class Micro(nn.Module):
    """`n_text` text tokens and `n_special` special ones besides the 1501 timestamps."""

    def __init__(self, size: Size, n_text: int, n_special: int) -> None:
        super().__init__()
        self.size = size
        self.encoder = Encoder(size)
        self.decoder = Decoder(size, n_text + n_special)
        # For training only: what is said in each frame, by CTC and by place.
        self.ctc = nn.Linear(size.width, n_text + 1)
        self.flat = nn.Linear(size.width, n_text + 1)
        with torch.no_grad():  # CTC begins with "nothing is said", or its first gradients drown the rest
            self.ctc.weight *= 0.3
            self.ctc.bias[-1] += 6


def sinusoids(length: int, width: int) -> Tensor:
    """Sines, then cosines, at `width` / 2 frequencies from 1 to 1/10000: (length, width), as in Whisper."""
    step = math.log(10000) / (width // 2 - 1)
    rates = torch.exp(-step * torch.arange(width // 2, dtype=torch.double))
    angles = torch.arange(length)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1).float()
