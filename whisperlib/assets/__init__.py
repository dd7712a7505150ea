"""What the package carries: the micro model, the VAD weights, and samples with their texts."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]
ASSETS = PACKAGE / "assets"
MICRO_MODEL = ASSETS / "whisper_micro" / "ggml-micro-f16.bin"
VAD_MODEL = ASSETS / "vad" / "ggml-silero-v6.2.0.bin"
SAMPLES = ASSETS / "samples"


@cache
def sample_references() -> tuple[dict[str, Any], ...]:
    """What is said in each sample: `file`, `text`, `language`, `voice`, `segments` with times in seconds."""
    return tuple(json.loads((SAMPLES / "refs.json").read_text(encoding="utf-8")))


def sample_text(file_name: str) -> str:
    """Text of one sample. Raises KeyError for an unknown one."""
    return str({reference["file"]: reference for reference in sample_references()}[file_name]["text"])
