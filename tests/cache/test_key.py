"""What a result depends on has part in its key, and nothing else has."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whisperlib.cache import Engine, key
from whisperlib.cache.key import WITHOUT_EFFECT, make_key
from whisperlib.options import PROFILES, CancelToken, TranscribeOptions, VadOptions
from whisperlib.pcm import Samples

SAMPLES: Samples = np.linspace(-1, 1, 16_000, dtype=np.float32)
MATTERS: dict[str, Any] = {
    "language": "de",
    "task": "translate",
    "beam_size": 2,
    "best_of": 2,
    "temperature": 0.5,
    "temperature_increment": 0.3,
    "logprob_threshold": -2.0,
    "entropy_threshold": 2.0,
    "no_speech_threshold": 0.5,
    "initial_prompt": "At the station.",
    "carry_initial_prompt": True,
    "condition_on_previous_text": False,
    "word_timestamps": True,
    "max_segment_length": 40,
    "offset_seconds": 0.5,
    "duration_seconds": 0.5,
    "suppress_non_speech": True,
    "vad": False,
    "vad_options": VadOptions(threshold=0.4),
    "audio_ctx": 512,
    "fit_audio_ctx": True,
    "chunking": "parallel",
}
MATTERS_NOT: dict[str, Any] = {
    "background": True,
    "cache": False,
    "cancel": CancelToken(),
    "max_wait_seconds": 3.0,
    "on_interrupt": "partial",
    "progress": print,
    "timeout_seconds": 3.0,
}


def key_of(
    samples: Samples = SAMPLES, fingerprint: str = "f", duration: float = 1.0, threads: int = 1, **options: Any
) -> str:
    merged = TranscribeOptions(**options).with_profile()
    return make_key(fingerprint, samples, merged, duration=duration, threads=threads)


def test_every_option_is_tried() -> None:
    assert MATTERS.keys() | WITHOUT_EFFECT == set(TranscribeOptions.model_fields)
    assert not MATTERS.keys() & WITHOUT_EFFECT
    assert MATTERS_NOT.keys() | {"profile", "threads"} == WITHOUT_EFFECT


@pytest.mark.parametrize("name", MATTERS)
def test_an_option_that_matters_is_another_key(name: str) -> None:
    assert key_of(**{name: MATTERS[name]}) != key_of()


@pytest.mark.parametrize("name", MATTERS_NOT)
def test_an_option_that_does_not_is_the_same_key(name: str) -> None:
    assert key_of(**{name: MATTERS_NOT[name]}) == key_of()


@pytest.mark.parametrize("name", VadOptions.model_fields)
def test_every_option_of_the_detector_matters(name: str) -> None:
    assert key_of(vad_options=VadOptions(**{name: 0.3})) != key_of()


def test_a_profile_is_what_it_makes_of_the_options() -> None:
    assert key_of(profile="accurate") == key_of(profile="balanced") == key_of()
    fast = TranscribeOptions().with_profile("fast")
    given = {name: getattr(fast, name) for name in ("beam_size", "chunking", "fit_audio_ctx")}
    assert key_of(profile="fast") == key_of(**given) != key_of()
    assert len({key_of(profile=profile) for profile in PROFILES}) == 2


def test_one_sample_matters_and_so_does_the_length() -> None:
    keys = {key_of()}
    for place in (0, 8_000, 15_999):
        changed = SAMPLES.copy()
        changed[place] = np.nextafter(changed[place], np.float32(2))
        keys.add(key_of(changed))
    keys |= {key_of(SAMPLES[:-1]), key_of(np.append(SAMPLES, np.float32(0))), key_of(duration=2.0)}
    assert len(keys) == 7
    assert key_of(SAMPLES.copy()) == key_of()


def test_threads_and_engine_matter() -> None:
    assert len({key_of(), key_of(threads=2), key_of(fingerprint="g")}) == 3


def test_a_key_is_64_hex_digits() -> None:
    assert len(key_of()) == 64
    assert int(key_of(), 16)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.bin"
    path.write_bytes(b"weights")
    return path


def test_an_engine_is_its_model_s_content_and_its_facts(model: Path, tmp_path: Path) -> None:
    first = Engine(model, ("cpu", "ggml")).fingerprint()
    twin = tmp_path / "of another name"
    twin.write_bytes(b"weights")
    assert Engine(twin, ("cpu", "ggml")).fingerprint() == first
    assert Engine(model, ("cpu", "openvino bf16")).fingerprint() != first
    twin.write_bytes(b"Weights")
    os.utime(twin, (1, 1))
    assert Engine(twin, ("cpu", "ggml")).fingerprint() != first


def test_a_model_is_read_once_as_long_as_it_stays(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def read_one(path: Path) -> str:
        read.append(path)
        return str(len(read))

    monkeypatch.setattr(key, "sha256_of", read_one)
    first, second = Engine(model, ()).fingerprint(), Engine(model, ("cuda",)).fingerprint()
    assert len(read) == 1
    assert first != second
    os.utime(model, (1, 1))
    assert Engine(model, ()).fingerprint() != first
    assert len(read) == 2


@pytest.mark.parametrize("package", ["whisperlib", "openvino"])
def test_versions_matter(model: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    first = Engine(model, ()).fingerprint()
    version = key._version
    monkeypatch.setattr(key, "_version", lambda name: "99" if name == package else version(name))
    assert Engine(model, ()).fingerprint() != first


def test_a_model_that_is_gone_is_an_error_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        Engine(tmp_path / "none.bin", ()).fingerprint()
