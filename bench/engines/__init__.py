"""The engines that are compared, by name."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import cast

from bench.engines import adapter
from bench.engines.base import Engine


@dataclass(frozen=True)
class Contestant:
    """One row of the tables: a class, given as `module:name`, and what it is asked to be.

    `beam_size` is set where it belongs to what is compared: such a row stands aside where another is asked for.
    `cases` names the only cases that it takes part in; empty: all that ask for a text. `kind` is the weight type of
    its ggml file, where that belongs to what is compared.
    """

    engine: str
    variant: str = ""
    beam_size: int | None = None
    cases: tuple[str, ...] = ()
    kind: str = ""


WEIGHT_TYPES = ("f16", "q8_0", "q5_1", "q5_0", "q4_k", "q4_0")
CONTESTANTS = {
    **{
        f"whisperlib-{name}": Contestant("bench.engines.adapter:Adapter", name, variant.beam_size)
        for name, variant in adapter.VARIANTS.items()
    },
    "whisper-cli": Contestant("bench.engines.programs:WhisperCli"),
    "whisper-server": Contestant("bench.engines.programs:WhisperServer"),
    "pywhispercpp": Contestant("bench.engines.wheel:PyWhisperCpp"),
    "faster-whisper-int8": Contestant("bench.engines.ctranslate:FasterWhisper", "int8"),
    "faster-whisper-float32": Contestant("bench.engines.ctranslate:FasterWhisper", "float32"),
    "faster-whisper-int8-batched": Contestant(
        "bench.engines.ctranslate:FasterWhisper", "int8-batched", cases=("long",)
    ),
    "genai-fp16": Contestant("bench.engines.genai:GenAi", "fp16"),
    "genai-int8": Contestant("bench.engines.genai:GenAi", "int8"),
    "whisperlib-encoder": Contestant("bench.engines.encoders:Encoder", "float", cases=("encode",)),
    "whisperlib-encoder-int8": Contestant("bench.engines.encoders:Encoder", "int8", cases=("encode",)),
    "whisperlib-encoder-ggml": Contestant("bench.engines.encoders:Encoder", "ggml", cases=("encode",)),
    "pywhispercpp-encoder-q5_1": Contestant("bench.engines.wheel:PyWhisperCppEncoder", cases=("encode",), kind="q5_1"),
    "ctranslate2-encoder-int8": Contestant("bench.engines.ctranslate:CTranslateEncoder", "int8", cases=("encode",)),
    **{
        f"whisperlib-{encoder}-{kind}": Contestant(
            "bench.engines.adapter:Adapter", variant, cases=("weights",), kind=kind
        )
        for encoder, variant in (("ggml", "balanced-ggml"), ("openvino", "balanced"))
        for kind in WEIGHT_TYPES
    },
}
OURS = tuple(name for name in CONTESTANTS if name.startswith("whisperlib"))


def find(name: str) -> type[Engine]:
    """Return the class of the engine called `name`."""
    module, _, attribute = CONTESTANTS[name].engine.partition(":")
    return cast(type[Engine], getattr(importlib.import_module(module), attribute))
