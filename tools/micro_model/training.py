"""The training loop."""

from __future__ import annotations

import json
import random
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tools.ggml_file import MICRO_MODEL, read_preamble
from tools.micro_model.augment import Augmenter
from tools.micro_model.clips import Clip
from tools.micro_model.export import import_model
from tools.micro_model.human_digits import Digits
from tools.micro_model.losses import Losses, guide_attention, losses
from tools.micro_model.model import Micro, Size
from tools.micro_model.sampling import Batch, ClipBank, Mixture, Sampler
from tools.micro_model.tokens import SPECIAL, TokenTable, load_tokeniser


@dataclass(frozen=True)
class Options:
    """`minutes` is the whole schedule's wall time; a resumed run continues where it stopped."""

    minutes: float = 75.0
    init: Path | None = None
    size: Size = field(default_factory=Size)
    audio_seconds: float = 160.0  # of a step
    matrix_rate: float = 0.015  # learning rate of the matrices (Muon)
    other_rate: float = 1.5e-3  # of everything else (AdamW)
    warmup_steps: int = 50
    decay_from: float = 0.2  # part of the schedule after which the rates fall linearly
    augmentation: float = 0.6
    flat_until: float = 0.18  # part of the schedule with the flat-start loss
    ctc_weight: float = 0.3
    attention_weight: float = 0.4
    head_steps: int = 60  # after `init`, steps that teach the fresh heads alone
    mixture: Mixture = field(default_factory=Mixture)
    report_steps: int = 50
    save_steps: int = 100
    seed: int = 1


class Trainer:
    """Model, averaged weights and optimisers. `state` and `load` make a run resumable."""

    def __init__(self, options: Options) -> None:
        self.options = options
        torch.manual_seed(options.seed)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if options.init:
            model, self.table = import_model(options.init)
        else:
            tokeniser = load_tokeniser()
            self.table = TokenTable(tokeniser, tokeniser.grammar_tokens())
            model = Micro(options.size, self.table.n_text, len(SPECIAL))
        self.model = model.to(self.device)
        self.average = {name: value.clone() for name, value in self.model.state_dict().items()}
        matrices = [p for name, p in self.model.named_parameters() if p.ndim == 2 and ".blocks." in name]
        chosen = set(map(id, matrices))
        others = [p for p in self.model.parameters() if id(p) not in chosen]
        self.optimisers: list[torch.optim.Optimizer] = [
            # Muon: Jordan et al. 2024.
            torch.optim.Muon(matrices, lr=options.matrix_rate, weight_decay=0.02),
            torch.optim.AdamW(others, lr=options.other_rate, betas=(0.9, 0.98)),
        ]
        self._rates = (options.matrix_rate, options.other_rate)
        self.step_count = 0
        self.seconds = 0.0
        guide_attention(self.model)

    @property
    def progress(self) -> float:
        return min(1.0, self.seconds / (60 * self.options.minutes))

    def step(self, batch: Batch) -> Losses:
        """Learn from one batch; a batch whose gradient is not finite is skipped."""
        options, progress = self.options, self.progress
        heads_only = options.init is not None and self.step_count < options.head_steps
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(not heads_only or name.startswith(("ctc.", "flat.")))
        flat_weight = min(1.0, max(0.0, (options.flat_until - progress) / 0.04))
        found = losses(self.model, batch, with_flat=flat_weight > 0)
        total = (
            found.tokens
            + options.ctc_weight * found.ctc
            + flat_weight * found.flat
            + options.attention_weight * found.attention
        )
        for optimiser in self.optimisers:
            optimiser.zero_grad()
        torch.autograd.backward(total)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        if torch.isfinite(norm):
            rate = min(1.0, (self.step_count + 1) / options.warmup_steps)
            if progress > options.decay_from:
                rate *= max(0.015, (1 - progress) / (1 - options.decay_from))
            for optimiser, base in zip(self.optimisers, self._rates, strict=True):
                for group in optimiser.param_groups:
                    group["lr"] = base * rate
                optimiser.step()
        self.step_count += 1
        self._update_average()
        return found

    def _update_average(self) -> None:
        keep = min(0.998, self.step_count / (self.step_count + 20))
        for name, value in self.model.state_dict().items():  # detached
            self.average[name].lerp_(value, 1 - keep)

    def state(self) -> dict[str, Any]:
        return {
            "size": asdict(self.model.size),
            "text": self.table.text,
            "model": self.model.state_dict(),
            "average": self.average,
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "steps": self.step_count,
            "seconds": self.seconds,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from `state`. Raises ValueError if it is of another size or other tokens."""
        if state["size"] != asdict(self.model.size) or state["text"] != self.table.text:
            raise ValueError("the checkpoint is of another model: remove it to begin anew")
        self.model.load_state_dict(state["model"])
        self.average = state["average"]
        for optimiser, stored in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(stored)
        self.step_count, self.seconds = state["steps"], state["seconds"]


def train(clips: list[Clip], digits: Digits, folder: Path, options: Options) -> None:
    """Train for what is left of the schedule, saving to `folder`/checkpoint.pt every so often."""
    checkpoint = folder / "checkpoint.pt"
    trainer = Trainer(options)
    if checkpoint.exists():
        trainer.load(torch.load(checkpoint, map_location=trainer.device, weights_only=True))
        print(f"resuming at step {trainer.step_count}, {trainer.progress:.0%} of the schedule")
    sampler = _sampler(clips, digits, trainer.table, options, trainer.step_count)
    recent: dict[str, list[Tensor]] = {}
    earlier, started = trainer.seconds, time.monotonic()
    while (progress := trainer.progress) < 1:
        strength = options.augmentation * min(1, 0.5 + 2.5 * progress) * (1 if progress < 0.85 else 0.75)
        batch = sampler.batch(strength)
        found = trainer.step(batch)
        trainer.seconds = earlier + time.monotonic() - started
        kind = "full" if batch.mels.shape[2] == 3000 else "short"
        recent.setdefault(kind, []).append(torch.stack(list(vars(found).values())).detach())
        if trainer.step_count % options.report_steps == 0:
            _report(folder / "losses.jsonl", trainer, recent)
            recent = {}
        if trainer.step_count % options.save_steps == 0:
            _save(trainer, checkpoint)
    _save(trainer, checkpoint)


def _sampler(clips: list[Clip], digits: Digits, table: TokenTable, options: Options, step: int) -> Sampler:
    rng = random.Random(f"{options.seed} {step}")  # a resumed run must not meet the same windows again
    bank = ClipBank(clips, digits, table, options.mixture.digits)
    with MICRO_MODEL.open("rb") as file:
        filters = read_preamble(file).mel_filters
    augmenter = Augmenter(filters, np.random.default_rng(rng.getrandbits(64)))
    return Sampler(bank, table, augmenter, rng, seconds=options.audio_seconds, mixture=options.mixture)


def load_averaged(checkpoint: Path) -> tuple[Micro, TokenTable]:
    """Return the model with the averaged weights of a checkpoint, and its tokens."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    table = TokenTable(load_tokeniser(), state["text"])
    model = Micro(Size(**state["size"]), table.n_text, len(SPECIAL))
    model.load_state_dict(state["average"])
    return model, table


def _report(path: Path, trainer: Trainer, recent: dict[str, list[Tensor]]) -> None:
    names = list(Losses.__dataclass_fields__)
    line: dict[str, Any] = {"step": trainer.step_count, "seconds": round(trainer.seconds)}
    for kind, values in sorted(recent.items()):
        means = torch.stack(values).nanmean(0).tolist()  # no text at all: accuracy is not a number
        line[kind] = {name: round(mean, 3) for name, mean in zip(names, means, strict=True)}
    print(json.dumps(line), flush=True)
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def _save(trainer: Trainer, path: Path) -> None:
    partial = path.with_suffix(".partial")
    torch.save(trainer.state(), partial)
    partial.replace(path)
