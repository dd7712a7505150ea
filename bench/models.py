"""The same random weights in every engine's own format, made once and kept.

`tools.random_weights` writes the ggml file; whatever else is needed is converted from that file, so all engines
hold the same numbers, up to their types. The plan in the weights says what is decoded: `<|0.00|>`, `WORDS` words,
`<|1.00|>`, end of text, in every engine and for every window, so all engines take the same decode steps.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tools import ggml_file, random_weights

CACHE_VARIABLE = "BENCH_CACHE"
CACHE = Path(os.environ.get(CACHE_VARIABLE) or ggml_file.REPOSITORY / ".bench")
WORDS = 30  # with the two times and the end of text: 33 tokens for each window
SIZES = ("micro", *random_weights.SIZES)

_END_OF_TEXT = 50257
_START = 50258
_PARTS = {
    "attn_ln": "self_attn_layer_norm",
    "attn": "self_attn",
    "cross_attn_ln": "encoder_attn_layer_norm",
    "cross_attn": "encoder_attn",
    "mlp_ln": "final_layer_norm",
    "mlp.0": "fc1",
    "mlp.2": "fc2",
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "out": "out_proj",
    "positional_embedding": "embed_positions.weight",
    "token_embedding": "embed_tokens",
    "ln_post": "layer_norm",
    "ln": "layer_norm",
}


def ggml(size: str, kind: str = "f16") -> Path:
    """Return the ggml file of a size of `SIZES` in a weight type ("q8_0"). The micro model's weights are real ones.

    Raises ValueError for another size.
    """
    if size not in SIZES:
        raise ValueError(f"size {size!r}: give one of {', '.join(SIZES)}")
    path = CACHE / size / f"ggml-{size}-{kind}.bin"
    if size == "micro" and kind == "f16":
        return _made(path, lambda fresh: fresh.write_bytes(ggml_file.MICRO_MODEL.read_bytes()))
    return _made(path, lambda fresh: _write_ggml(fresh, size, kind))


def accelerate(model: Path, kind: str = "float") -> None:
    """Put the OpenVINO encoder of a kind (float or int8) beside a ggml file, if it is not there."""
    # Imported here: it sets how OpenMP waits, which is not to reach the workers of other engines.
    from whisperlib import binding, encoder, variants  # noqa: PLC0415
    from whisperlib.errors import ModelError  # noqa: PLC0415

    try:
        encoder.find(model, kind)
    except ModelError:
        encoder.accelerate(model, binding.load(variants.choose("cpu").directory), kind)


def transformers(size: str) -> Path:
    """Return the directory of the model as `transformers` saves it, tokenizer and all, in f32."""
    return _made(CACHE / size / "transformers", lambda fresh: _write_transformers(fresh, ggml(size)))


def ctranslate2(size: str, quantization: str) -> Path:
    """Return the directory of a CTranslate2 model, which faster-whisper runs; `quantization` is int8 or float32."""

    def write(fresh: Path) -> None:
        source = transformers(size)
        files = ("tokenizer.json", "preprocessor_config.json")
        _run("ctranslate2.converters.transformers", "--model", source, "--output_dir", fresh,
             "--quantization", quantization, "--copy_files", *files)  # fmt: skip

    return _made(CACHE / size / f"ctranslate2-{quantization}", write)


def openvino(size: str, weights: str) -> Path:
    """Return the directory of an OpenVINO GenAI model; `weights` is fp16 or int8."""

    def write(fresh: Path) -> None:
        _run("optimum.commands.optimum_cli", "export", "openvino", "--model", transformers(size),
             "--task", "automatic-speech-recognition-with-past", "--weight-format", weights, fresh)  # fmt: skip

    return _made(CACHE / size / f"openvino-{weights}", write)


def transformers_name(name: str) -> str:
    """Return what `transformers` calls the tensor that ggml files call `name`."""
    name = re.sub(r"\.blocks\.", ".layers.", name)
    # Longer names first, or `ln` would take the end of `attn_ln`.
    pattern = "|".join(re.escape(part) for part in sorted(_PARTS, key=len, reverse=True))
    return "model." + re.sub(rf"(?<=\.)({pattern})(?=\.|$)", lambda match: _PARTS[match[0]], name)


def _made(path: Path, write: Callable[[Path], object]) -> Path:
    """Return `path`; where it is missing, have it written beside and put in place when it is whole."""
    if not path.exists():
        print(f"making {path.relative_to(CACHE.parent)}", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".new-{path.name}")
        _remove(fresh)
        try:
            write(fresh)
            fresh.rename(path)
        finally:
            _remove(fresh)
    return path


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write_ggml(path: Path, size: str, kind: str) -> None:
    if kind != "f16":
        random_weights.quantize(ggml(size), path, kind)
    else:
        random_weights.write_model(path, random_weights.SIZES[size], tokens=WORDS)


def _run(module: str, *arguments: object) -> None:
    """Run a converter of the bench environment; its output is shown if it fails."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, text=True)
    if done.returncode:
        raise OSError(f"{module} failed:\n{done.stdout[-2000:]}")


def _write_transformers(path: Path, source: Path) -> None:
    # Only here: torch takes seconds to import and half a gigabyte.
    import torch  # noqa: PLC0415
    from transformers import (  # noqa: PLC0415
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
    )

    with source.open("rb") as file:
        header = ggml_file.read_preamble(file).header
        tensors = {transformers_name(name): values for name, values in _tensors(file)}
    config = WhisperConfig(
        vocab_size=header.n_vocab,
        num_mel_bins=header.n_mels,
        d_model=header.n_audio_state,
        encoder_layers=header.n_audio_layer,
        encoder_attention_heads=header.n_audio_head,
        encoder_ffn_dim=4 * header.n_audio_state,
        decoder_layers=header.n_text_layer,
        decoder_attention_heads=header.n_text_head,
        decoder_ffn_dim=4 * header.n_text_state,
        max_source_positions=header.n_audio_ctx,
        max_target_positions=header.n_text_ctx,
        bos_token_id=_END_OF_TEXT,
        eos_token_id=_END_OF_TEXT,
        pad_token_id=_END_OF_TEXT,
        decoder_start_token_id=_START,
    )
    model = WhisperForConditionalGeneration(config)
    state = {name: torch.from_numpy(values) for name, values in tensors.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or set(missing) - {"proj_out.weight"}:  # that one is tied to the embedding
        raise ValueError(f"{source}: missing {missing}, unexpected {unexpected}")
    special = _write_tokenizer(path, header.n_vocab)
    model.generation_config = GenerationConfig(**_generation(special))
    model.save_pretrained(path)
    WhisperFeatureExtractor(feature_size=header.n_mels).save_pretrained(path)


def _tensors(file: Any) -> Iterator[tuple[str, Any]]:
    for name, values in ggml_file.read_tensors(file):
        flat = values[:, 0] if name.endswith(("conv1.bias", "conv2.bias")) else values
        yield name, np.ascontiguousarray(flat, np.float32)


def _write_tokenizer(path: Path, n_vocab: int) -> dict[str, int]:
    """Write Whisper's tokenizer into `path`; return the ids of its special tokens.

    `openai-whisper` brings the ranks of the byte sequences. The merges that `tokenizers` wants follow from them: the
    last two parts that make up each sequence, when only those of lower rank are merged.
    """
    from transformers import WhisperTokenizer, WhisperTokenizerFast  # noqa: PLC0415
    from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode  # noqa: PLC0415
    from whisper.tokenizer import get_encoding  # noqa: PLC0415

    encoding = get_encoding("multilingual", num_languages=n_vocab - 51766)
    ranks: dict[bytes, int] = encoding._mergeable_ranks
    letters = bytes_to_unicode()

    def written(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = (" ".join(map(written, parts_of(token, ranks))) for token in ranks if len(token) > 1)
    path.mkdir(parents=True)
    (path / "vocab.json").write_text(json.dumps({written(token): rank for token, rank in ranks.items()}))
    (path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    special = dict(sorted(encoding._special_tokens.items(), key=lambda item: item[1]))
    names = [name for name in special if name != "<|endoftext|>"]
    tokenizer = WhisperTokenizer(
        str(path / "vocab.json"), str(path / "merges.txt"), additional_special_tokens=names[: names.index("<|0.00|>")]
    )
    tokenizer.add_tokens(names[names.index("<|0.00|>") :])
    wrong = [name for name, number in special.items() if tokenizer.convert_tokens_to_ids(name) != number]
    if wrong:
        raise ValueError(f"tokens with another id than Whisper's: {wrong[:5]}")
    tokenizer.save_pretrained(path)
    WhisperTokenizerFast.from_pretrained(path).save_pretrained(path)
    return special


def parts_of(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """Return the two parts that byte-pair encoding joins last to make `token`."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        joined = [ranks.get(left + right, len(ranks)) for left, right in itertools.pairwise(parts)]
        first = joined.index(min(joined))
        parts[first : first + 2] = [parts[first] + parts[first + 1]]
    return parts[0], parts[1]


def _generation(special: dict[str, int]) -> dict[str, Any]:
    between = range(_START + 1, special["<|translate|>"])
    return {
        "is_multilingual": True,
        "lang_to_id": {name: number for name, number in special.items() if number in between},
        "task_to_id": {"translate": special["<|translate|>"], "transcribe": special["<|transcribe|>"]},
        "no_timestamps_token_id": special["<|notimestamps|>"],
        "prev_sot_token_id": special["<|startofprev|>"],
        "max_initial_timestamp_index": 50,
        "begin_suppress_tokens": [220, _END_OF_TEXT],
        "suppress_tokens": [],
        "bos_token_id": _END_OF_TEXT,
        "eos_token_id": _END_OF_TEXT,
        "pad_token_id": _END_OF_TEXT,
        "decoder_start_token_id": _START,
        "max_length": 448,
    }
