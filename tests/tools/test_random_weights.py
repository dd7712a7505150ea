import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tools import random_weights
from tools.ggml_file import MICRO_MODEL, REPOSITORY, read_preamble, read_tensors, tensor_layout
from tools.random_weights import SIZES, main, mel_filters, plan, scaled_down, write_model
from whisperlib import models

WHISPER_CLI = REPOSITORY / "native/lib/cpu/whisper-cli"
SPEECH = REPOSITORY / "whisperlib/assets/samples/seen_020.flac"

UPSTREAM_BYTES = {
    "tiny": 77_691_713,
    "base": 147_951_465,
    "small": 487_601_967,
    "medium": 1_533_763_059,
    "large-v3-turbo": 1_624_555_275,
}


@pytest.mark.parametrize("size", SIZES)
def test_a_small_file_has_the_tensors_of_its_size(size: str, tmp_path: Path) -> None:
    header = scaled_down(SIZES[size], layers=2, width=64)
    write_model(tmp_path / "model.bin", header)
    with (tmp_path / "model.bin").open("rb") as file:
        assert read_preamble(file).header == header
        tensors = dict(read_tensors(file))
    assert list(tensors) == [spec.name for spec in tensor_layout(header)]
    for spec in tensor_layout(header):
        values = tensors[spec.name]
        assert (values.shape, values.dtype) == (spec.shape, np.dtype(spec.dtype))
        assert np.isfinite(values).all()


@pytest.mark.parametrize("size", SIZES)
def test_whole_files_have_the_real_size_but_for_the_vocabulary(size: str) -> None:
    header = SIZES[size]
    with MICRO_MODEL.open("rb") as file:
        tokens = sum(4 + len(token) for token in read_preamble(file).vocabulary)
    total = 48 + 8 + header.n_mels * 201 * 4 + 4 + tokens
    for spec in tensor_layout(header):
        total += 12 + 4 * len(spec.shape) + len(spec.name) + np.dtype(spec.dtype).itemsize * int(np.prod(spec.shape))
    assert total - UPSTREAM_BYTES[size] == 2986


def test_the_same_seed_gives_the_same_file(tmp_path: Path) -> None:
    header = scaled_down(SIZES["tiny"], layers=1, width=64)
    files = [tmp_path / name for name in ("first", "again", "other")]
    for path, seed in zip(files, (1, 1, 2), strict=True):
        write_model(path, header, seed=seed)
    first, again, other = (path.read_bytes() for path in files)
    assert first == again
    assert first != other


def test_mel_filters_are_those_of_the_real_models() -> None:
    with MICRO_MODEL.open("rb") as file:
        assert mel_filters(80) == pytest.approx(read_preamble(file).mel_filters, abs=1e-8)


def test_the_plan_ends_after_the_wanted_tokens() -> None:
    ids = plan(SIZES["tiny"], 5, np.random.default_rng(0))[2:]
    assert ids[0] == 50364
    assert (ids[1:6] < 50257).all()
    assert list(ids[6:9]) == [50414, 50257, 50364]


def test_a_plan_without_end_has_no_end_of_text() -> None:
    assert 50257 not in plan(SIZES["tiny"], 220, np.random.default_rng(0))


@pytest.mark.skipif(not WHISPER_CLI.exists(), reason="needs native/lib/cpu/whisper-cli: make native")
def test_whisper_cpp_decodes_what_was_planned(tmp_path: Path) -> None:
    model = tmp_path / "model.bin"
    main(["small", str(model), "--layers", "3", "--width", "128", "--tokens", "7"])
    command = [str(WHISPER_CLI), "-m", str(model), "-f", str(SPEECH), "-t", "1"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=True)
    assert re.findall(r"\[.*\]", done.stdout) == ["[00:00:00.000 --> 00:00:01.000]"]
    assert re.search(r"fallbacks = +0 p / +0 h", done.stderr)


@pytest.mark.parametrize(
    "arguments",
    [["huge", "x"], ["tiny", "x", "--tokens", "0"], ["tiny", "x", "--width", "100"], ["tiny", "x", "--layers", "0"]],
)
def test_impossible_arguments_end_with_a_message(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert "error: " in capsys.readouterr().err


def test_quantised_types_need_our_quantizer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(random_weights, "QUANTIZE", tmp_path / "whisper-quantize")
    with pytest.raises(SystemExit):
        main(["tiny", str(tmp_path / "x"), "--type", "q5_1"])
    assert "make native" in capsys.readouterr().err


@pytest.mark.skipif(not random_weights.QUANTIZE.exists(), reason="needs whisper-quantize: make native")
def test_a_k_type_wants_a_width_that_its_blocks_divide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model.bin"
    main(["small", str(model), "--layers", "3", "--width", "256", "--type", "q4_k"])
    assert models.check_header(model).quantization == "q4_k"
    with pytest.raises(SystemExit):
        main(["tiny", str(tmp_path / "other.bin"), "--type", "q4_k"])
    assert "a multiple of 256, and it is 384" in capsys.readouterr().err
