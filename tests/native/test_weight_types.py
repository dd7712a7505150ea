"""Weight types whose kernels are ours: what they compute is what their numbers say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from whisperlib import assets, audio, binding, models, variants
from whisperlib.binding import Context

SPEECH = audio.load(assets.SAMPLES / "seen_020.flac")


@pytest.mark.parametrize(("kind", "bound"), [("q5_1", 0.1), ("q8_0", 0.03)])
def test_the_encoder_is_as_near_to_f16_as_the_bits_allow(kind: str, bound: float, tmp_path: Path) -> None:
    quantised = tmp_path / f"ggml-micro-{kind}.bin"
    models.quantize(assets.MICRO_MODEL, quantised, kind)
    library = binding.load(variants.choose("cpu").directory)
    with Context(library, assets.MICRO_MODEL) as exact, Context(library, quantised) as rounded:
        with exact.new_state() as state:
            expected = state.encode(SPEECH, 2)
        with rounded.new_state() as state:
            found = state.encode(SPEECH, 2)

    for ours, theirs in ((found.keys, expected.keys), (found.values, expected.values)):
        difference = np.linalg.norm(ours.astype(np.float32) - theirs) / np.linalg.norm(theirs.astype(np.float32))
        assert 0 < difference < bound
