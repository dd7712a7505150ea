"""The library as its user meets it, from the first import to the last close.

PYTHONPATH=. pytest tests/test_whisper_library.py
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import whisperlib
from whisperlib import WhisperLibraryAdapter, assets, binding

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]


def test_the_library_loads_and_says_its_version(adapter: WhisperLibraryAdapter) -> None:
    library = binding.loaded()
    assert library is not None
    assert library.version == adapter.config.library_version
    assert any(device.kind == "cpu" for device in library.devices)


def test_everything_in_all_is_there() -> None:
    assert len(set(whisperlib.__all__)) == len(whisperlib.__all__)
    for name in whisperlib.__all__:
        assert getattr(whisperlib, name) is not None


def test_the_model_is_loaded_once_and_called_many_times(adapter: WhisperLibraryAdapter) -> None:
    instance = adapter.config.instance_id
    texts = {adapter.transcribe(assets.SAMPLES / "seen_020.flac").text for _ in range(3)}
    assert texts == {"Call the doctor on Thursday."}
    assert adapter.config.instance_id == instance


def test_the_readme_s_first_lines_work(run_python: RunPython) -> None:
    child = run_python(
        """
from whisperlib import WhisperLibraryAdapter, assets

with WhisperLibraryAdapter("micro") as whisper:
    result = whisper.transcribe(assets.SAMPLES / "rms_010.flac")
    print(result.language, result.text)
    for segment in whisper.stream(assets.SAMPLES / "rms_010.flac"):
        print(f"{segment.start:.0f} {segment.end:.0f} {segment.text}")
"""
    )
    text = "The train to Paris leaves at five thirty-six from platform five."
    assert child.stdout.splitlines() == [f"en {text}", f"0 6 {text}"], child.stderr


def test_nothing_is_written_to_stdout_or_stderr(run_python: RunPython) -> None:
    child = run_python(
        """
from whisperlib import WhisperLibraryAdapter, assets
with WhisperLibraryAdapter("micro") as whisper:
    whisper.transcribe(assets.SAMPLES / "seen_020.flac")
"""
    )
    assert (child.returncode, child.stdout, child.stderr) == (0, "", "")
