"""Quantises the encoder to int8 after training, with speech to measure the activations on."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from whisperlib.errors import ModelError


def quantize(model: Any, mels: Iterable[npt.NDArray[np.float32]]) -> Any:
    """Return an int8 form of the graph `model`.

    `mels`: windows of real speech, float32, shape (n_mels, frames). Weights are symmetric per channel and activations
    are smoothed first, as NNCF does for transformers. Raises ModelError where the extra is not installed.
    """
    try:
        import nncf  # noqa: PLC0415  (an extra)
    except ImportError:
        raise ModelError(
            "to make an int8 encoder, nncf is needed: pip install 'whisperlib[openvino-int8]', or leave int8 out"
        ) from None
    windows = [mel[None] for mel in mels]
    with contextlib.redirect_stdout(sys.stderr):  # where progress belongs
        return nncf.quantize(
            model,
            nncf.Dataset(windows),
            subset_size=len(windows),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
        )
