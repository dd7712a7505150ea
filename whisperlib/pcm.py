"""The one form in which samples travel: float32, shape (n,), 16 kHz mono, -1.0 to 1.0."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

SAMPLE_RATE = 16_000  # WHISPER_SAMPLE_RATE in whisper.h: what every Whisper model hears

SAMPLE_BYTES = 4

Samples: TypeAlias = npt.NDArray[np.float32]
