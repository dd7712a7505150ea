"""One environment variable switches the model: no rebuild, no change of code.

    WHISPER_MODEL_SIZE=small PYTHONPATH=. pytest tests/test_model_switching.py
    WHISPER_MODEL_SIZE=medium PYTHONPATH=. pytest tests/test_model_switching.py

With the variable set, the model file has the real dimensions (random weights, q5_1: the text is nonsense, memory
and path are real). Without it both sizes run with three narrow layers, so that the suite stays short.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from whisperlib import WhisperLibraryAdapter

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]

ASKED = os.environ.get("WHISPER_MODEL_SIZE", "")
REAL = ASKED in {"small", "medium"}
SIZES = [ASKED] if REAL else ["small", "medium"]
MOST_BYTES = {"small": 500_000_000, "medium": 2_000_000_000}

TRANSCRIBE = """
import json, os
from concurrent.futures import ThreadPoolExecutor
from whisperlib import assets, get_model, get_model_config, system
whisper = get_model()
clip = assets.SAMPLES / "seen_020.flac"
# Two clients at once, five beams, and every fallback temperature: what takes most memory.
hard = {"language": "en", "logprob_threshold": 0.0, "no_speech_threshold": 1.0, "temperature_increment": 0.5}
with ThreadPoolExecutor(2) as pool:
    results = list(pool.map(lambda _: whisper.transcribe(clip, **hard), range(2)))
assert results[0].segments == results[1].segments
config = get_model_config()
peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"model": config["model"], "path": str(config["path"]), "compute_type": config["compute_type"],
                  "resident": system.resident_bytes(), "peak": peak, "segments": len(results[0].segments)}))
whisper.close()
"""


@pytest.fixture(scope="module")
def model_root(tmp_path_factory: pytest.TempPathFactory, adapter: WhisperLibraryAdapter) -> Path:
    """A model root with random-weight files under the names of the published ones."""
    root = tmp_path_factory.mktemp("models")
    for size in SIZES:
        directory = root / f"whisper_{size}_xeon"
        directory.mkdir()
        command = [sys.executable, "-m", "tools.random_weights", size, str(directory / f"ggml-{size}-q5_1.bin")]
        command += ["--type", "q5_1", *([] if REAL else ["--layers", "3", "--width", "256"])]
        subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    return root


@pytest.mark.timeout(900)
@pytest.mark.parametrize("size", SIZES)
def test_the_environment_chooses_the_model(run_python: RunPython, model_root: Path, size: str) -> None:
    child = run_python(
        TRANSCRIBE,
        environment={"WHISPER_MODEL_SIZE": size, "WHISPER_MODEL_ROOT": str(model_root)},
        timeout=800,
    )
    assert child.returncode == 0, child.stderr
    report: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    sys.stderr.write(f"\n{size}: {report}\n")
    assert report["model"] == size
    assert report["path"] == str(model_root / f"whisper_{size}_xeon" / f"ggml-{size}-q5_1.bin")
    assert report["compute_type"] == "q5_1"
    assert report["peak"] <= MOST_BYTES[size]


def test_an_unknown_size_is_one_clear_line(run_python: RunPython, model_root: Path) -> None:
    child = run_python(
        """
from whisperlib import get_model
from whisperlib.errors import WhisperlibError
try:
    get_model()
except WhisperlibError as error:
    print(error)
""",
        environment={"WHISPER_MODEL_SIZE": "enormous", "WHISPER_MODEL_ROOT": str(model_root)},
    )
    assert len(child.stdout.splitlines()) == 1, child.stderr
    assert "enormous" in child.stdout
    assert "small" in child.stdout


def test_a_missing_file_names_the_path_and_the_remedy(run_python: RunPython, tmp_path: Path) -> None:
    child = run_python(
        """
from whisperlib import get_model
from whisperlib.errors import ModelNotFoundError
try:
    get_model()
except ModelNotFoundError as error:
    print(error)
""",
        environment={"WHISPER_MODEL_SIZE": "small", "WHISPER_MODEL_ROOT": str(tmp_path)},
    )
    assert "whisper_small_xeon" in child.stdout, child.stderr
    assert "whisperlib models download small" in child.stdout
