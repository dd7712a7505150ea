"""The model store: names, pins, header checks, and what is fetched or made where."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import shutil
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from tests.conftest import ROOT
from tools.ggml_file import Header as FileHeader
from tools.ggml_file import tensor_layout
from tools.random_weights import SIZES, scaled_down
from tools.random_weights import write_model as write_random_model
from whisperlib import assets, models
from whisperlib.errors import (
    DownloadError,
    LibraryNotFoundError,
    ModelError,
    ModelFileError,
    ModelNotFoundError,
    OptionError,
)
from whisperlib.models import Artifact, Catalogue, Header, Model
from whisperlib.models.header import MAGIC, WEIGHT_TYPES, layout
from whisperlib.settings import Settings

SMALL = Header(51_864, 1500, 64, 1, 1, 448, 64, 1, 1, 80, ftype=1)
# Of each published model: width, encoder and decoder layers, mel bands, vocabulary.
DIMENSIONS = {
    "tiny": (384, 4, 4, 80, 51_865),
    "base": (512, 6, 6, 80, 51_865),
    "small": (768, 12, 12, 80, 51_865),
    "medium": (1024, 24, 24, 80, 51_865),
    "large-v3-turbo": (1280, 32, 4, 128, 51_866),
    "large-v3": (1280, 32, 32, 128, 51_866),
}


def write_model(path: Path, quantization: str = "f16", header: Header = SMALL) -> Path:
    """Write a model whose weights are zeros that take no room on the disk."""
    header = replace(header, ftype=WEIGHT_TYPES[quantization].file_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<I11i", MAGIC, *astuple(header)))
        file.write(struct.pack("<2i", header.n_mels, 201) + bytes(4 * header.n_mels * 201))
        file.write(struct.pack("<2i", 1, 2) + b"hi")
        for name, tensor in layout(header).items():
            kind = WEIGHT_TYPES[tensor.quantization]
            file.write(struct.pack("<3i", len(tensor.shape), len(name), kind.tensor_id))
            file.write(struct.pack(f"<{len(tensor.shape)}i", *tensor.shape) + name.encode())
            file.seek(tensor.size, os.SEEK_CUR)
        file.truncate()
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.bin")


def put(path: Path, position: int, data: bytes) -> bytes:
    """Overwrite part of a file; returns what was there."""
    with path.open("r+b") as file:
        file.seek(position)
        before = file.read(len(data))
        file.seek(position)
        file.write(data)
    return before


# What a header check says


def test_the_embedded_model_is_sound() -> None:
    header = models.check_header(assets.MICRO_MODEL)
    assert header == Header(51_865, 1500, 128, 2, 6, 448, 128, 2, 3, 80, ftype=1)
    assert header.quantization == "f16"
    assert header.multilingual


def test_the_voice_activity_model_is_sound() -> None:
    header = models.check_vad_header(assets.VAD_MODEL)
    assert (header.model_type, header.version) == ("silero-16k", "6.2.0")
    digest = hashlib.sha256(assets.VAD_MODEL.read_bytes()).hexdigest()
    assert digest == "2aa269b785eeb53a82983a20501ddf7c1d9c48e33ab63a41391ac6c9f7fb6987"


@pytest.mark.parametrize("name", DIMENSIONS)
def test_a_published_size_is_what_the_layout_comes_to(name: str) -> None:
    """All published files share vocabulary and framing: the rest of each size is its tensors and mel filters."""
    width, audio_layers, text_layers, n_mels, n_vocab = DIMENSIONS[name]
    assert models.CATALOGUE[name].artifacts
    for artifact in models.CATALOGUE[name].artifacts:
        header = Header(
            n_vocab, 1500, width, width // 64, audio_layers, 448, width, width // 64, text_layers, n_mels,
            ftype=WEIGHT_TYPES[artifact.quantization].file_id,
        )  # fmt: skip
        tensors = sum(12 + 4 * len(t.shape) + len(name) + t.size for name, t in layout(header).items())
        assert artifact.size == 508_145 + 4 * n_mels * 201 + tensors


@pytest.mark.parametrize("quantization", ["f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"])
def test_the_weight_type_is_read_from_the_header(tmp_path: Path, quantization: str) -> None:
    path = write_model(tmp_path / "misnamed-q9.bin", quantization)
    assert models.check_header(path).quantization == quantization
    assert not models.check_header(path).multilingual


FIELDS = {name: 4 + 4 * index for index, name in enumerate(Header.__dataclass_fields__)}
MELS, TOKENS, TENSORS = 48, 56 + 4 * 80 * 201, 66 + 4 * 80 * 201


@pytest.mark.parametrize(
    ("position", "value", "complaint"),
    [
        (0, 0x46554747, "begins with b'GGUF'"),
        *((FIELDS[name], value, f"{name} = {value}") for name in FIELDS for value in (-1, 0, 2**31 - 1)
          if (name, value) not in {("ftype", -1), ("ftype", 2**31 - 1)}),
        (FIELDS["n_vocab"], 51_867, "n_vocab = 51867"),
        (FIELDS["n_audio_ctx"], 1501, "n_audio_ctx = 1501"),
        (FIELDS["n_audio_layer"], 33, "n_audio_layer = 33"),
        (FIELDS["n_text_layer"], 64, "n_text_layer = 64"),
        (FIELDS["n_text_state"], 128, "n_text_state = 128"),
        (FIELDS["n_text_head"], 2, "n_text_head = 2"),
        (FIELDS["ftype"], -1, "ftype = -1"),
        (FIELDS["ftype"], -999, "ftype = -999"),
        (FIELDS["ftype"], 4, "ftype = 4"),
        (FIELDS["ftype"], 12, "q4_k needs rows of a multiple of 256, and it has 64"),
        (MELS, 128, "mel filters are 128 × 201, not 80 × 201"),
        (MELS + 4, -201, "mel filters are 80 × -201"),
        (TOKENS, 0, "vocabulary has 0 tokens"),
        (TOKENS, 51_865, "vocabulary has 51865 tokens"),
        (TOKENS + 4, 129, "token 0 has 129 bytes"),
        (TOKENS + 4, -1, "token 0 has 4294967295 bytes"),
        (TENSORS, 4, "a tensor has 4 dimensions"),
        (TENSORS, -1, "a tensor has -1 dimensions"),
        (TENSORS + 4, -1, "a name of -1 bytes"),
        (TENSORS + 4, 2**30, "a name of 1073741824 bytes"),
        (TENSORS + 8, 1, r"encoder.positional_embedding is f16 \(64, 1500\), not f32"),
        (TENSORS + 8, 99, "is type 99"),
        (TENSORS + 12, 65, r"is f32 \(65, 1500\), not f32 \(64, 1500\)"),
        (TENSORS + 20, 0x2E2E2E2E, "a tensor '....der.positional_embedding' that no such model has"),
    ],
)  # fmt: skip
def test_a_number_that_no_model_has_is_named(model: Path, position: int, value: int, complaint: str) -> None:
    put(model, position, struct.pack("<I", value % 2**32))
    with pytest.raises(ModelFileError, match=complaint) as caught:
        models.check_header(model)
    assert str(caught.value).startswith(f"{model} is damaged or no Whisper model: ")


def records(path: Path) -> tuple[bytes, dict[str, bytes]]:
    """Cut a model file: what comes before the tensors, and each tensor with its header."""
    content = path.read_bytes()
    rest = content[TENSORS:]
    tensors = {}
    for name, tensor in layout(SMALL).items():
        length = 12 + 4 * len(tensor.shape) + len(name) + tensor.size
        tensors[name], rest = rest[:length], rest[length:]
    assert not rest
    return content[:TENSORS], tensors


def test_every_tensor_is_wanted_once_in_any_order(model: Path) -> None:
    """whisper.cpp counts tensors: one twice and another not at all would leave that one as malloc gave it."""
    head, tensors = records(model)
    shuffled = random.Random(4).sample(list(tensors), len(tensors))
    model.write_bytes(head + b"".join(tensors[name] for name in shuffled))
    assert models.check_header(model) == SMALL
    for name, next_name in zip(shuffled, [*shuffled[1:], shuffled[0]], strict=True):
        rest = [tensors[other] for other in shuffled if other != name]
        model.write_bytes(head + b"".join(rest))
        with pytest.raises(ModelFileError, match=f"lacks 1 of {len(tensors)} tensors, among them {name}"):
            models.check_header(model)
        model.write_bytes(head + b"".join([*rest, tensors[next_name]]))
        with pytest.raises(ModelFileError, match=f"'{next_name}' twice"):
            models.check_header(model)


@pytest.mark.parametrize("name", DIMENSIONS)
def test_the_layout_is_that_of_our_tools(name: str) -> None:
    """`tools` writes files that whisper.cpp runs, from a description of its own."""
    width, audio_layers, text_layers, n_mels, n_vocab = DIMENSIONS[name]
    numbers = (n_vocab, 1500, width, width // 64, audio_layers, 448, width, width // 64, text_layers, n_mels, 1)
    kinds = {np.float32: "f32", np.float16: "f16"}
    assert {name: (tensor.shape, tensor.quantization) for name, tensor in layout(Header(*numbers)).items()} == {
        spec.name: (spec.shape[::-1], kinds[spec.dtype]) for spec in tensor_layout(FileHeader(*numbers))
    }


def test_a_tensor_that_comes_twice_or_not_at_all(model: Path) -> None:
    content = model.read_bytes()
    first = content.index(b"decoder.ln.weight")
    put(model, first, b"decoder.ln.bias\0\0")
    with pytest.raises(ModelFileError, match="no such model has"):
        models.check_header(model)
    other = content.index(b"encoder.blocks.0.attn_ln.weight")
    put(model, first, b"decoder.ln.weight")
    put(model, other, b"encoder.blocks.0.attn_ln.weighu")
    with pytest.raises(ModelFileError, match="weighu"):
        models.check_header(model)
    put(model, other, b"encoder.blocks.0.attn_ln.weight")
    record = content[other - 16 : other + 31 + 4 * 64]
    with model.open("ab") as file:
        file.write(record)
    with pytest.raises(ModelFileError, match="'encoder.blocks.0.attn_ln.weight' twice"):
        models.check_header(model)


def test_every_truncation_is_found(model: Path) -> None:
    size = model.stat().st_size
    whole = random.Random(2)
    lengths = {0, 3, 4, 47, 48, 55, 56, TOKENS, TOKENS + 9, TENSORS, TENSORS + 11, TENSORS + 40, size - 1}
    lengths |= {whole.randrange(size) for _ in range(100)}
    for length in sorted(lengths, reverse=True):
        os.truncate(model, length)
        with pytest.raises(ModelFileError, match=r"cut off after [\d,]+ bytes|lacks \d+ of 50 tensors"):
            models.check_header(model)


@pytest.mark.parametrize("extra", [1, 11, 12, 5000])
def test_padding_is_found(model: Path, extra: int) -> None:
    with model.open("ab") as file:
        file.write(bytes(extra))
    with pytest.raises(ModelFileError):
        models.check_header(model)


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_never_raises_anything_else(model: Path, seed: int) -> None:
    rng = random.Random(seed)
    content = model.read_bytes()
    places = [*range(56), *range(TOKENS, TENSORS)]
    for name in layout(SMALL):
        start = content.index(name.encode())
        places += range(start - 24, start + len(name))
    for _ in range(200):
        changes = [(rng.choice(places), rng.randbytes(rng.choice([1, 2, 4]))) for _ in range(rng.choice([1, 1, 3]))]
        before = [(position, put(model, position, data)) for position, data in changes]
        with contextlib.suppress(ModelFileError):
            models.check_header(model)
        for position, data in reversed(before):
            put(model, position, data)
    assert models.check_header(model) == SMALL


@pytest.mark.parametrize("content", [b"", b"lm", b"<!DOCTYPE html>" + bytes(1000), b"GGUF" + bytes(1000)])
def test_what_is_no_model_at_all(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "page.bin"
    path.write_bytes(content)
    for check in (models.check_header, models.check_vad_header):
        with pytest.raises(ModelFileError, match="no Whisper model"):
            check(path)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"nothing\.bin is not there"):
        models.check_header(tmp_path / "nothing.bin")
    with pytest.raises(ModelFileError, match="is not a file"):
        models.check_header(tmp_path)
    with pytest.raises(ModelFileError, match="cannot be read"):
        models.check_header(Path("a\0b"))
    os.mkfifo(tmp_path / "pipe.bin")
    with pytest.raises(ModelFileError, match="is not a file"):
        models.check_header(tmp_path / "pipe.bin")


def test_a_damaged_voice_activity_model(tmp_path: Path) -> None:
    path = tmp_path / "vad.bin"
    shutil.copy(assets.VAD_MODEL, path)
    rng = random.Random(3)
    size = path.stat().st_size
    for _ in range(200):
        position, data = rng.randrange(126), rng.randbytes(4)
        before = put(path, position, data)
        with contextlib.suppress(ModelFileError):
            models.check_vad_header(path)
        put(path, position, before)
    models.check_vad_header(path)
    for length in sorted((rng.randrange(size) for _ in range(50)), reverse=True):
        os.truncate(path, length)
        with pytest.raises(ModelFileError):
            models.check_vad_header(path)
    with pytest.raises(ModelFileError, match="'silero-16k'|n_vocab"):
        models.check_header(assets.VAD_MODEL)
    with pytest.raises(ModelFileError):
        models.check_vad_header(assets.MICRO_MODEL)


# Which file a name, a directory or a path stands for


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(model_root=tmp_path / "root", download_retries=0, download_timeout_seconds=10)


def shelve(settings: Settings, *quantizations: str, name: str = "small") -> Path:
    directory = settings.model_root / models.CATALOGUE[name].directory
    for quantization in quantizations:
        write_model(directory / models.CATALOGUE[name].file_name(quantization), quantization)
    return directory


def test_the_embedded_model_is_always_there(settings: Settings) -> None:
    file = models.resolve("micro", settings=settings)
    assert (file.name, file.path, file.quantization) == ("micro", assets.MICRO_MODEL, "f16")
    assert file.size == assets.MICRO_MODEL.stat().st_size
    assert not settings.model_root.exists()


@pytest.mark.parametrize(
    ("there", "cpu", "cuda"),
    [
        ("f16 q8_0 q5_1 q5_0 q4_0", "q8_0", "f16"),
        ("f16 q5_1 q5_0", "q5_1", "f16"),
        ("q5_0 f16", "q5_0", "f16"),
        ("f16 q4_0", "f16", "f16"),
        ("q5_1 q8_0", "q8_0", "q8_0"),
    ],
)
def test_the_best_type_for_the_device(settings: Settings, there: str, cpu: str, cuda: str) -> None:
    directory = shelve(settings, *there.split())
    for device, best in (("cpu", cpu), ("cuda", cuda)):
        file = models.resolve("small", device=device, settings=settings)
        assert (file.name, file.quantization, file.path.parent) == ("small", best, directory)
        assert models.resolve(directory, device=device, settings=settings).path == file.path


def test_four_bits_are_taken_by_name_only(settings: Settings) -> None:
    shelve(settings, "q4_0")
    with pytest.raises(ModelNotFoundError, match=r"ggml-small-q4_0\.bin \(q4_0\)"):
        models.resolve("small", settings=settings)
    assert models.resolve("small", quantization="q4_0", settings=settings).quantization == "q4_0"


def test_the_settings_say_what_is_left_out(settings: Settings) -> None:
    shelve(settings, "q8_0", "q5_1", name="medium")
    chosen = Settings(model_root=settings.model_root, model_size="medium", quantization="q5_1")
    assert models.resolve(settings=chosen).path.name == "ggml-medium-q5_1.bin"
    assert models.resolve(quantization="auto", settings=chosen).quantization == "q8_0"
    by_path = Settings(model_size=str(settings.model_root / "whisper_medium_xeon"))
    assert models.resolve(settings=by_path).quantization == "q8_0"


def test_a_missing_model_names_path_and_remedy(settings: Settings) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        models.resolve("small", settings=settings)
    message = str(caught.value)
    assert str(settings.model_root / "whisper_small_xeon") in message
    assert "run `whisperlib models download small`" in message
    assert "WHISPER_MODEL_ROOT" in message
    shelve(settings, "q5_1")
    with pytest.raises(ModelNotFoundError, match="`whisperlib models download small --compute-type q8_0`"):
        models.resolve("small", quantization="q8_0", settings=settings)


def test_a_path_is_taken_as_it_is(settings: Settings, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for given in (model, str(model)):
        file = models.resolve(given, settings=settings)
        assert (file.name, file.path, file.quantization) == ("model", model, "f16")
    monkeypatch.chdir(model.parent)
    assert models.resolve("model.bin", settings=settings).quantization == "f16"
    assert models.resolve(model, quantization="f16", settings=settings).path == model
    with pytest.raises(OptionError, match=r"quantization = 'q8_0', but .*model\.bin is f16"):
        models.resolve(model, quantization="q8_0", settings=settings)


@pytest.mark.parametrize(
    ("given", "error", "complaint"),
    [
        ("enormous", ModelNotFoundError, "'enormous': the names are micro, tiny, base, small, medium"),
        ("nowhere.bin", ModelNotFoundError, "no model is called"),
        ("./nowhere", ModelNotFoundError, "nowhere is not there"),
        (Path("small"), ModelNotFoundError, "small is not there"),
        ("a\0/b", ModelFileError, "cannot be read"),
        ("~nobody-of-this-name/b", ModelFileError, "cannot be read"),
        ("x" * 5000 + "/b", ModelFileError, "File name too long"),
    ],
)
def test_what_is_no_model(settings: Settings, given: str, error: type[ModelError], complaint: str) -> None:
    with pytest.raises(error, match=complaint):
        models.resolve(given, settings=settings)


def test_an_unknown_weight_type(settings: Settings) -> None:
    for call in (models.resolve, models.fetch):
        with pytest.raises(OptionError, match="quantization = 'q9': give auto, f16, q8_0"):
            call("micro", quantization="q9", settings=settings)


def test_a_damaged_file_is_passed_over_with_a_warning(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    directory = shelve(settings, "q8_0", "q5_1")
    os.truncate(directory / "ggml-small-q8_0.bin", 1000)
    assert models.resolve("small", settings=settings).quantization == "q5_1"
    assert "passed over: " in caplog.text
    assert "ggml-small-q8_0.bin is damaged" in caplog.text
    with pytest.raises(ModelFileError, match="q8_0.bin is damaged"):
        models.resolve("small", quantization="q8_0", settings=settings)
    (directory / "ggml-small-q5_1.bin").unlink()
    with pytest.raises(ModelFileError, match="q8_0.bin is damaged"):
        models.resolve("small", settings=settings)


def test_voice_activity_weights_beside_a_model_are_no_model(tmp_path: Path, settings: Settings, model: Path) -> None:
    shutil.copy(assets.VAD_MODEL, tmp_path)
    assert models.resolve(tmp_path, settings=settings).path == model
    model.unlink()
    with pytest.raises(ModelNotFoundError, match="no model file in"):
        models.resolve(tmp_path, settings=settings)


# Fetching and making


class Handler(SimpleHTTPRequestHandler):
    requests: ClassVar[list[str]]

    def do_GET(self) -> None:
        self.requests.append(self.path)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str, list[str]]]:
    """A directory, the address that serves it, and the paths that were asked for."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    directory = tmp_path / "mirror"
    directory.mkdir()
    requests: list[str] = []
    handler = type("CountingHandler", (Handler,), {"requests": requests})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(directory)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield directory, f"http://127.0.0.1:{server.server_port}/", requests
    server.shutdown()
    server.server_close()
    thread.join()


Mirror = tuple[Path, str, list[str]]


@pytest.fixture
def toy_settings(tmp_path: Path, mirror: Mirror) -> Settings:
    return Settings(model_root=tmp_path / "root", artifact_url=mirror[1], download_retries=0, lib_dir=tmp_path / "none")


def publish(mirror: Mirror, *quantizations: str, preferred: str = "q5_1", fallback: str | None = None) -> Catalogue:
    """Put small models on the mirror; returns a catalogue that pins them."""
    model = Model("toy", "whisper_toy", preferred, fallback=fallback)
    artifacts = []
    for kind in quantizations:
        path = write_model(mirror[0] / model.file_name(kind), kind)
        content = path.read_bytes()
        artifacts.append(Artifact(kind, path.name, len(content), hashlib.sha256(content).hexdigest()))
    return {"toy": replace(model, artifacts=tuple(artifacts))}


@pytest.fixture
def quantizer(tmp_path: Path) -> Callable[[str], Path]:
    """Write a program in the place of whisper-quantize: `$1` source, `$2` target, `$3` type."""

    def write(script: str) -> Path:
        path = tmp_path / "fake-quantize"
        path.write_text(f"#!/bin/sh\necho run >> {tmp_path}/runs\n{script}\n", encoding="utf-8")
        path.chmod(0o755)
        return path

    return write


Quantizer = Callable[[str], Path]


def test_nothing_is_fetched_unasked(mirror: Mirror, toy_settings: Settings) -> None:
    catalogue = publish(mirror, "q5_1")
    with pytest.raises(ModelNotFoundError):
        models.resolve("toy", settings=toy_settings, catalogue=catalogue)
    assert mirror[2] == []
    assert not toy_settings.model_root.exists()


def test_a_published_file_is_fetched_once(mirror: Mirror, toy_settings: Settings) -> None:
    catalogue = publish(mirror, "f16", "q8_0", "q5_1")
    seen: list[tuple[int, int]] = []
    for _ in range(2):
        file = models.resolve(
            "toy",
            download=True,
            progress=lambda done, size: seen.append((done, size)),
            settings=toy_settings,
            catalogue=catalogue,
        )
    assert file.path == toy_settings.model_root / "whisper_toy" / "ggml-toy-q5_1.bin"
    assert (file.name, file.quantization) == ("toy", "q5_1")
    assert seen[-1] == (file.size, file.size)
    assert models.fetch("toy", settings=toy_settings, catalogue=catalogue) == file
    assert mirror[2] == ["/ggml-toy-q5_1.bin"]


@pytest.mark.parametrize(
    ("quantization", "device", "asked"),
    [("auto", "cuda", "ggml-toy.bin"), ("q8_0", "cuda", "ggml-toy-q8_0.bin"), ("f16", "cpu", "ggml-toy.bin")],
)
def test_type_and_device_choose_the_file(
    mirror: Mirror, toy_settings: Settings, quantization: str, device: str, asked: str
) -> None:
    catalogue = publish(mirror, "f16", "q8_0", "q5_1")
    file = models.fetch("toy", quantization=quantization, device=device, settings=toy_settings, catalogue=catalogue)
    assert file.path.name == asked
    assert mirror[2] == [f"/{asked}"]


def test_what_is_not_published_is_made_from_f16(
    mirror: Mirror, toy_settings: Settings, quantizer: Quantizer, tmp_path: Path
) -> None:
    catalogue = publish(mirror, "f16")
    made = write_model(tmp_path / "made.bin", "q5_1")
    program = quantizer(f'test -s "$1" && test "$3" = q5_1 && cp {made} "$2"')
    file = models.fetch("toy", quantizer=program, settings=toy_settings, catalogue=catalogue)
    assert (file.path.name, file.quantization) == ("ggml-toy-q5_1.bin", "q5_1")
    assert mirror[2] == ["/ggml-toy.bin"]
    assert visible(file.path.parent) == ["ggml-toy-q5_1.bin"]


def test_an_f16_file_that_was_there_stays(
    mirror: Mirror, toy_settings: Settings, quantizer: Quantizer, tmp_path: Path
) -> None:
    catalogue = publish(mirror, "f16")
    models.fetch("toy", quantization="f16", settings=toy_settings, catalogue=catalogue)
    made = write_model(tmp_path / "made.bin", "q8_0")
    file = models.fetch(
        "toy",
        quantization="q8_0",
        quantizer=quantizer(f'cp {made} "$2"'),
        settings=toy_settings,
        catalogue=catalogue,
    )
    assert visible(file.path.parent) == ["ggml-toy-q8_0.bin", "ggml-toy.bin"]
    assert mirror[2] == ["/ggml-toy.bin"]


def test_two_at_once_make_it_once(mirror: Mirror, toy_settings: Settings, quantizer: Quantizer, tmp_path: Path) -> None:
    catalogue = publish(mirror, "f16")
    made = write_model(tmp_path / "made.bin", "q5_1")
    program = quantizer(f'cp {made} "$2"')
    gate = threading.Barrier(4)

    def get(_: int) -> Path:
        gate.wait()
        return models.fetch("toy", quantizer=program, settings=toy_settings, catalogue=catalogue).path

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(get, range(4)))) == 1
    assert (tmp_path / "runs").read_text() == "run\n"
    assert mirror[2] == ["/ggml-toy.bin"]


def test_without_a_quantizer_the_fallback_comes(
    mirror: Mirror, toy_settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    catalogue = publish(mirror, "f16", "q8_0", "q5_0", fallback="q5_0")
    file = models.fetch("toy", settings=toy_settings, catalogue=catalogue)
    assert file.path.name == "ggml-toy-q5_0.bin"
    assert "toy is not published in q5_1, and no whisper-quantize runs" in caplog.text
    assert "taking the published q5_0" in caplog.text
    with pytest.raises(LibraryNotFoundError, match="run `make native`"):
        models.fetch("toy", quantization="q5_1", settings=toy_settings, catalogue=catalogue)
    assert mirror[2] == ["/ggml-toy-q5_0.bin"]


def test_without_f16_nothing_can_be_made(mirror: Mirror, toy_settings: Settings) -> None:
    catalogue = publish(mirror, "q5_1", "q5_0")
    with pytest.raises(ModelNotFoundError, match="toy is not published in q8_0: .*WHISPER_QUANTIZATION to q5_1, q5_0"):
        models.fetch("toy", quantization="q8_0", settings=toy_settings, catalogue=catalogue)
    assert mirror[2] == []


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("echo first >&2; echo boom >&2; exit 3", "failed on .* with 3: boom"),
        ("kill -ILL $$", "failed on .* with -4: it said nothing"),
        ('head -c 5000 "$1" > "$2"', "made a damaged file: .*is the disk full"),
        ("exit 0", "made a damaged file: .*is not there"),
        ('cp "$1" "$2"', "made f16 where q5_1 was asked for"),
    ],
)
def test_a_quantizer_that_fails_leaves_nothing(
    mirror: Mirror, toy_settings: Settings, quantizer: Quantizer, script: str, complaint: str
) -> None:
    catalogue = publish(mirror, "f16")
    with pytest.raises(ModelFileError, match=complaint):
        models.fetch("toy", quantizer=quantizer(script), settings=toy_settings, catalogue=catalogue)
    assert visible(toy_settings.model_root / "whisper_toy") == []
    made = write_model(mirror[0] / "made.bin", "q5_1")
    models.fetch("toy", quantizer=quantizer(f'cp {made} "$2"'), settings=toy_settings, catalogue=catalogue)
    assert mirror[2] == ["/ggml-toy.bin"], "what was fetched is used by the next try"


def test_a_program_that_does_not_start(tmp_path: Path, model: Path) -> None:
    with pytest.raises(ModelFileError, match="could not make q8_0"):
        models.quantize(model, tmp_path / "made.bin", "q8_0", tmp_path / "nothing")
    assert visible(tmp_path) == ["model.bin"]


def test_a_damaged_file_is_not_replaced_unasked(mirror: Mirror, toy_settings: Settings) -> None:
    catalogue = publish(mirror, "q5_1")
    path = models.fetch("toy", settings=toy_settings, catalogue=catalogue).path
    os.truncate(path, 100)
    with pytest.raises(ModelFileError, match="cut off"):
        models.fetch("toy", settings=toy_settings, catalogue=catalogue)
    assert path.stat().st_size == 100


def test_another_body_than_the_pinned_one(mirror: Mirror, toy_settings: Settings) -> None:
    catalogue = publish(mirror, "q5_1")
    put(mirror[0] / "ggml-toy-q5_1.bin", 5_000, b"x")
    with pytest.raises(ModelFileError, match="SHA-256"):
        models.fetch("toy", settings=toy_settings, catalogue=catalogue)
    assert visible(toy_settings.model_root / "whisper_toy") == []


def test_a_file_that_the_mirror_does_not_have(mirror: Mirror, toy_settings: Settings) -> None:
    catalogue = publish(mirror, "q5_1")
    (mirror[0] / "ggml-toy-q5_1.bin").unlink()
    with pytest.raises(DownloadError, match=r"/ggml-toy-q5_1\.bin: 404 Not Found: .*WHISPER_ARTIFACT_URL"):
        models.resolve("toy", download=True, settings=toy_settings, catalogue=catalogue)


def test_an_unknown_name_is_not_fetched(toy_settings: Settings) -> None:
    for call in (models.fetch, models.verify):
        with pytest.raises(ModelNotFoundError, match="no model is called 'enormous': the names are micro, tiny"):
            call("enormous", settings=toy_settings)
    with pytest.raises(ModelNotFoundError):
        models.resolve("./enormous.bin", download=True, settings=toy_settings)


def visible(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.is_file() and not path.name.startswith("."))


# The real whisper-quantize


@pytest.fixture(scope="module")
def real_quantizer() -> Path:
    found = models.find_quantizer()
    assert found, "make native"
    return found


@pytest.mark.parametrize("quantization", ["q8_0", "q5_1", "q5_0", "q4_1", "q4_0"])
def test_the_embedded_model_in_another_type(tmp_path: Path, real_quantizer: Path, quantization: str) -> None:
    target = tmp_path / "new" / f"micro-{quantization}.bin"
    header = models.quantize(assets.MICRO_MODEL, target, quantization, real_quantizer)
    assert header.quantization == quantization
    assert header == replace(models.check_header(assets.MICRO_MODEL), ftype=header.ftype)
    assert models.check_header(target) == header
    assert target.stat().st_size < 0.6 * assets.MICRO_MODEL.stat().st_size
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    assert stat.S_IMODE(target.stat().st_mode) & 0o400
    with pytest.raises(ModelFileError, match=f"is {quantization} already"):
        models.quantize(target, tmp_path / "again.bin", "q4_0", real_quantizer)


def test_a_model_like_medium_comes_from_f16(
    mirror: Mirror, toy_settings: Settings, real_quantizer: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The way of `whisperlib models download medium`, whose q5_1 is not published, with random weights."""
    source = mirror[0] / "ggml-toy.bin"
    write_random_model(source, scaled_down(SIZES["medium"], layers=1, width=64))
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    pins = (Artifact("f16", source.name, source.stat().st_size, digest),)
    catalogue = {"toy": Model("toy", "whisper_toy", "q5_1", pins, fallback="f16")}
    chosen = toy_settings.model_copy(update={"lib_dir": real_quantizer.parent})
    file = models.resolve("toy", download=True, settings=chosen, catalogue=catalogue)
    assert (file.quantization, visible(file.path.parent)) == ("q5_1", ["ggml-toy-q5_1.bin"])
    assert not list(file.path.parent.glob(".*.source"))
    assert 0.3 * source.stat().st_size < file.size < 0.5 * source.stat().st_size
    assert models.resolve("toy", settings=chosen, catalogue=catalogue) == file
    (verified,) = models.verify("toy", chosen, catalogue)
    assert not verified.pinned
    assert mirror[2] == ["/ggml-toy.bin"]
    assert not caplog.records


def test_a_type_that_does_not_fit_the_width(tmp_path: Path, real_quantizer: Path) -> None:
    with pytest.raises(ModelFileError):
        models.quantize(assets.MICRO_MODEL, tmp_path / "micro-q4_k.bin", "q4_k", real_quantizer)
    assert list(tmp_path.iterdir()) == []


def test_what_quantize_refuses(tmp_path: Path, real_quantizer: Path) -> None:
    for unknown in ("q9", "f16", "auto"):
        with pytest.raises(OptionError, match=f"quantization = '{unknown}': give q8_0"):
            models.quantize(assets.MICRO_MODEL, tmp_path / "x.bin", unknown, real_quantizer)
    with pytest.raises(ModelNotFoundError):
        models.quantize(tmp_path / "nothing.bin", tmp_path / "x.bin", "q8_0", real_quantizer)
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match="cannot be written"):
        models.quantize(assets.MICRO_MODEL, tmp_path / "file" / "x.bin", "q8_0", real_quantizer)


def test_other_types_of_the_embedded_model_are_made_when_asked_for(settings: Settings, real_quantizer: Path) -> None:
    chosen = Settings(model_root=settings.model_root, lib_dir=real_quantizer.parent)
    file = models.resolve("micro", quantization="q8_0", settings=chosen)
    assert file.path == settings.model_root / "whisper_micro" / "ggml-micro-q8_0.bin"
    made = file.path.stat().st_mtime_ns
    assert models.resolve("micro", quantization="q8_0", settings=chosen).path.stat().st_mtime_ns == made
    assert models.resolve("micro", settings=chosen).path == assets.MICRO_MODEL


def test_where_the_quantizer_is_looked_for(
    tmp_path: Path, quantizer: Quantizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert models.find_quantizer(tmp_path) is None
    broken = tmp_path / "whisper-quantize"
    broken.write_text("#!/bin/sh\necho cannot load libwhisper.so >&2; exit 127\n")
    assert models.find_quantizer(tmp_path) is None, "not executable"
    broken.chmod(0o755)
    assert models.find_quantizer(tmp_path) is None, "does not run"
    (tmp_path / "cpu").mkdir()
    good = quantizer("echo usage: whisper-quantize model-f32.bin model-quant.bin type >&2; exit 1")
    good.rename(tmp_path / "cpu" / "whisper-quantize")
    assert models.find_quantizer(tmp_path) == tmp_path / "cpu" / "whisper-quantize"
    monkeypatch.setattr(assets, "PACKAGE", tmp_path / "elsewhere" / "whisperlib")
    monkeypatch.setenv("PATH", str(tmp_path / "cpu"), prepend=os.pathsep)
    assert models.find_quantizer() == tmp_path / "cpu" / "whisper-quantize"


# Looking through what is there


def test_verify_hashes_what_is_pinned(mirror: Mirror, toy_settings: Settings) -> None:
    catalogue = publish(mirror, "f16", "q5_1")
    with pytest.raises(ModelNotFoundError, match="`whisperlib models download toy`"):
        models.verify("toy", toy_settings, catalogue)
    path = models.fetch("toy", settings=toy_settings, catalogue=catalogue).path
    write_model(path.with_name("ggml-toy-q8_0.bin"), "q8_0")
    found = {verified.file.quantization: verified.pinned for verified in models.verify("toy", toy_settings, catalogue)}
    assert found == {"q5_1": True, "q8_0": False}
    put(path, path.stat().st_size - 1, b"\1")
    models.check_header(path)
    with pytest.raises(ModelFileError, match=r"q5_1\.bin has the SHA-256 \w{64}, not \w{64}: delete it"):
        models.verify("toy", toy_settings, catalogue)
    os.truncate(path, 1000)
    with pytest.raises(ModelFileError, match="cut off"):
        models.verify("toy", toy_settings, catalogue)


def test_verify_of_the_embedded_model(settings: Settings) -> None:
    (verified,) = models.verify("micro", settings)
    assert verified.file.path == assets.MICRO_MODEL


def test_the_list_has_every_name_and_what_is_there(settings: Settings) -> None:
    directory = shelve(settings, "q5_1", "f16")
    os.truncate(directory / "ggml-small.bin", 10)
    shelves = {shelf.model.name: shelf for shelf in models.list_models(settings)}
    assert tuple(shelves) == tuple(models.CATALOGUE)
    assert [file.path for file in shelves["micro"].files] == [assets.MICRO_MODEL]
    small = shelves["small"]
    assert small.directory == directory
    assert [(file.quantization, file.size) for file in small.files] == [
        ("q5_1", (directory / "ggml-small-q5_1.bin").stat().st_size)
    ]
    assert len(small.damaged) == 1
    assert "ggml-small.bin is damaged" in small.damaged[0]
    assert (shelves["medium"].files, shelves["medium"].damaged) == ((), ())


def test_names_and_directories() -> None:
    assert {name: model.directory for name, model in models.CATALOGUE.items()} == {
        "micro": "whisper_micro",
        "tiny": "whisper_tiny_xeon",
        "base": "whisper_base_xeon",
        "small": "whisper_small_xeon",
        "medium": "whisper_medium_xeon",
        "large-v3-turbo": "whisper_large_v3_turbo_xeon",
        "large-v3": "whisper_large_v3_xeon",
    }
    assert models.CATALOGUE["small"].file_name("q5_1") == "ggml-small-q5_1.bin"
    assert models.CATALOGUE["medium"].file_name("q5_1") == "ggml-medium-q5_1.bin"
    for model in models.CATALOGUE.values():
        if model.embedded:
            continue
        assert model.artifact("f16"), "what is not published is made from it"
        assert model.artifact(model.fallback or model.preferred)


def test_the_documentation_has_every_pin() -> None:
    rows = [
        [cell.strip(" `") for cell in line.strip("|").split("|")]
        for line in (ROOT / "docs/models.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| `ggml-")
    ]
    assert rows == [
        [artifact.file_name, f"{artifact.size:,}", artifact.sha256]
        for model in models.CATALOGUE.values()
        for artifact in model.artifacts
    ]


def test_the_room_imports_nothing_native() -> None:
    sources = list((ROOT / "whisperlib/models").glob("*.py"))
    assert sources
    assert not [path for path in sources if re.search("binding|ctypes", path.read_text(encoding="utf-8"))]
