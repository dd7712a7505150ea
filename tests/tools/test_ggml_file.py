import hashlib
import io
from pathlib import Path

import numpy as np
import pytest

from tools.ggml_file import MICRO_MODEL, REPOSITORY, read_preamble, read_tensors, tensor_layout

VAD_MODEL = REPOSITORY / "whisperlib/assets/vad/ggml-silero-v6.2.0.bin"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_bundled_models_are_the_ones_that_were_measured() -> None:
    assert sha256(MICRO_MODEL) == "01a5f2766e6056043c6b23624d0e76603f6d8c3c0bfad741bc1c9819d4f822b7"
    assert sha256(VAD_MODEL) == "2aa269b785eeb53a82983a20501ddf7c1d9c48e33ab63a41391ac6c9f7fb6987"


def test_the_micro_model_has_every_tensor_that_whisper_cpp_reads() -> None:
    with MICRO_MODEL.open("rb") as file:
        header = read_preamble(file).header
        found = [(name, values.shape, values.dtype) for name, values in read_tensors(file)]
    assert (header.n_vocab, header.n_audio_state, header.n_audio_layer, header.n_text_layer) == (51865, 128, 6, 3)
    assert found == [(spec.name, spec.shape, np.dtype(spec.dtype)) for spec in tensor_layout(header)]


def test_a_preamble_is_written_as_it_was_read() -> None:
    with MICRO_MODEL.open("rb") as file:
        preamble = read_preamble(file)
        length = file.tell()
        file.seek(0)
        assert preamble.to_bytes() == file.read(length)


@pytest.mark.parametrize("data", [b"", b"RIFF" + bytes(100), MICRO_MODEL.read_bytes()[:5000]])
def test_other_files_and_cut_ones_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a ggml file|ends too early"):
        read_preamble(io.BytesIO(data))


def test_a_file_cut_in_a_tensor_is_refused() -> None:
    file = io.BytesIO(MICRO_MODEL.read_bytes()[:-1])
    read_preamble(file)
    with pytest.raises(ValueError, match="ends too early"):
        for _ in read_tensors(file):
            pass
