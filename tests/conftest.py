"""Fixtures of the whole suite: the real native library and the embedded micro model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import pytest

from whisperlib import WhisperLibraryAdapter, assets, audio, binding, encoder, loader, stt, variants
from whisperlib.pcm import Samples
from whisperlib.settings import get_settings

ROOT = Path(__file__).resolve().parents[1]


os.environ["WHISPER_CACHE"] = "off"  # here, as some settings are made when a test file is imported


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Keep the user's settings out of the tests, but for those that are run per model size."""
    if request.node.get_closest_marker("user_environment"):
        return
    for name in [name for name in os.environ if name.startswith("WHISPER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WHISPER_CACHE", "off")  # a test shall not find what another left
    # A measurement on a busy machine may share the cores either way; tests count on one of them.
    monkeypatch.setenv("WHISPER_MEASURE_THREADS", "false")
    monkeypatch.setenv("WHISPER_BATCHES", "off")  # else they would lie in the user's own directory


@pytest.fixture(scope="session")
def library_dir() -> Path:
    """Directory of the native libraries under test."""
    return variants.choose("cpu").directory


@pytest.fixture(scope="session")
def adapter() -> Iterator[WhisperLibraryAdapter]:
    """The micro model, two requests at a time, one thread each."""
    with WhisperLibraryAdapter("micro", threads=1, concurrency=2) as whisper:
        yield whisper


@pytest.fixture(scope="session")
def accelerated_model(tmp_path_factory: pytest.TempPathFactory, library_dir: Path) -> Path:
    """Path of a copy of the micro model that has its OpenVINO encoder beside it; do not change it."""
    model = Path(shutil.copy(assets.MICRO_MODEL, tmp_path_factory.mktemp("accelerated")))
    encoder.accelerate(model, binding.load(library_dir))
    return model


@pytest.fixture(scope="module")
def shared_models() -> Iterator[None]:
    """Shared adapters of a module's own: the micro model by default, two requests at a time, one thread each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "_slots", {})
        patch.setattr(loader, "_isolated", {})
        patch.setattr(stt, "_instances", WeakValueDictionary())
        for name, value in {"MODEL_SIZE": "micro", "THREADS": "1", "CONCURRENCY": "2"}.items():
            patch.setenv(f"WHISPER_{name}", value)
        get_settings.cache_clear()
        get_settings()
        yield
        loader.close_all()
    get_settings.cache_clear()


@pytest.fixture(scope="session")
def sample() -> Callable[[str], Samples]:
    """Load a bundled sample by its name without suffix: float32, shape (n,), 16 kHz."""
    loaded: dict[str, Samples] = {}

    def load(name: str) -> Samples:
        if name not in loaded:
            loaded[name] = audio.load(assets.SAMPLES / f"{name}.flac")
            loaded[name].flags.writeable = False
        return loaded[name]

    return load


@pytest.fixture(scope="session")
def silence() -> Samples:
    """Five seconds of digital silence."""
    return np.zeros(5 * 16_000, np.float32)


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Python code in a process of its own, for what a process can do only once or may die of."""

    def run(code: str, *, environment: dict[str, str] | None = None, timeout: float = 120) -> Any:
        script = tmp_path / "child.py"
        script.write_text(code, encoding="utf-8")
        return subprocess.run(
            [sys.executable, str(script)],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
                **(environment or {}),
            },
        )

    return run


@pytest.fixture(scope="session")
def references() -> dict[str, dict[str, Any]]:
    """What is said in each sample, by its name without suffix."""
    rows = json.loads((assets.SAMPLES / "refs.json").read_text(encoding="utf-8"))
    return {Path(row["file"]).stem: row for row in rows}
