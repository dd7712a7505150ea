"""The four losses of a training step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tools.micro_model.model import Block, Micro
from tools.micro_model.sampling import IGNORED, Batch

# Layer and head of the cross attentions that are told where to look.
GUIDED = ((2, 0), (2, 1), (1, 0))


@dataclass(frozen=True)
class Losses:
    """`tokens`: cross-entropy of the decoder. `accuracy`: share of text tokens guessed right, 0 to 1.

    `ctc`: connectionist temporal classification on the encoder, for each token. `flat`: each frame's token,
    taking a word's letters for evenly spread in time. `attention`: -log of the guided heads' weight inside
    the stretch of audio where the token is spoken.
    """

    tokens: Tensor
    ctc: Tensor
    flat: Tensor
    attention: Tensor
    accuracy: Tensor


def guide_attention(model: Micro) -> None:
    """Make the guided heads keep their weights for `losses`."""
    for layer, _ in GUIDED:
        _block(model, layer).cross_attn.keep_weights = True


def losses(model: Micro, batch: Batch, with_flat: bool) -> Losses:
    device = next(model.parameters()).device

    def on_device(values: object) -> Tensor:
        return torch.as_tensor(values, device=device)

    # A row may have several targets; it is decoded once.
    rows, places = torch.unique(on_device(batch.target_rows), return_inverse=True)
    ids, weights = on_device(batch.target_ids), on_device(batch.target_weights)
    with torch.autocast(device.type, torch.bfloat16):
        audio = model.encoder(on_device(batch.mels), on_device(batch.offsets))
        logits = model.decoder(on_device(batch.inputs), audio, rows)
    likelihood = logits.float().log_softmax(-1)
    tokens = -(likelihood[places, ids] * weights).sum() / len(rows)

    n_text = model.ctc.out_features - 1
    certain = (weights == 1) & (ids < n_text)
    accuracy = (likelihood.argmax(-1)[places[certain]] == ids[certain]).float().mean()

    audio = audio.float()
    flat = torch.zeros((), device=device)
    if with_flat:
        frame_words = on_device(batch.frame_words).flatten()
        flat = F.cross_entropy(model.flat(audio).flatten(0, 1), frame_words, ignore_index=IGNORED)
    return Losses(tokens, _ctc(model, audio, batch, n_text), flat, _attention(model, on_device(batch.spans)), accuracy)


def _ctc(model: Micro, audio: Tensor, batch: Batch, blank: int) -> Tensor:
    counts = torch.as_tensor(batch.word_counts)
    loss = F.ctc_loss(
        model.ctc(audio).log_softmax(-1).transpose(0, 1),
        torch.as_tensor(batch.words, device=audio.device),
        torch.as_tensor(batch.word_frames),
        counts,
        blank=blank,
        reduction="none",
        zero_infinity=True,  # more tokens than frames before a cut
    )
    spoken = counts > 0
    return loss[spoken.to(loss.device)].sum() / max(1, int(counts.sum()))


def _attention(model: Micro, spans: Tensor) -> Tensor:
    """Without this loss the heads hardly find the place in packed windows with a prompt."""
    total = torch.zeros((), device=spans.device)
    if not len(spans):
        return total
    for layer, head in GUIDED:
        weights = _block(model, layer).cross_attn.weights
        assert weights is not None, "guide_attention comes first"  # noqa: S101
        chosen = weights[:, head].float().flatten(0, 1)[spans[:, 0]]
        frames = torch.arange(chosen.shape[-1], device=spans.device)
        inside = (frames >= spans[:, 1:2]) & (frames < spans[:, 2:3])
        total = total - ((chosen * inside).sum(-1) + 1e-4).log().mean() / len(GUIDED)
    return total


def _block(model: Micro, layer: int) -> Block:
    block = model.decoder.blocks[layer]
    assert isinstance(block, Block)  # noqa: S101
    return block
