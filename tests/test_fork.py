"""A fork after loading is refused, and harms neither side."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]


def test_a_fork_after_loading_is_refused_and_the_parent_works_on(run_python: RunPython) -> None:
    child = run_python(
        """
import os, sys
from whisperlib import WhisperLibraryAdapter, assets, binding
from whisperlib.errors import ForkedProcessError
clip = assets.SAMPLES / "seen_020.flac"
whisper = WhisperLibraryAdapter("micro", threads=1, concurrency=1)
pid = os.fork()
if pid == 0:
    refused = 0
    calls = (
        lambda: whisper.transcribe(clip),
        lambda: WhisperLibraryAdapter("micro"),
        lambda: whisper._context.new_state(),
        lambda: binding.load(whisper.config.library_directory),
    )
    for call in calls:
        try:
            call()
        except ForkedProcessError as error:
            refused += "after the fork" in str(error)
    del whisper  # its finaliser must leave the parent's memory alone
    os._exit(refused)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
print(whisper.transcribe(clip).text)
whisper.close()
"""
    )
    assert child.stdout.splitlines() == ["4", "Call the doctor on Thursday."], child.stderr


def test_loading_after_the_fork_works(run_python: RunPython) -> None:
    child = run_python(
        """
import os
from whisperlib import WhisperLibraryAdapter, assets
pid = os.fork()
if pid == 0:
    with WhisperLibraryAdapter("micro", threads=1, concurrency=1) as whisper:
        right = whisper.transcribe(assets.SAMPLES / "seen_020.flac").text == "Call the doctor on Thursday."
    os._exit(0 if right else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    )
    assert child.stdout.strip() == "0", child.stderr


def test_a_process_with_a_loaded_model_ends_cleanly(run_python: RunPython) -> None:
    """Nothing closed, a stream half read: no crash, no hang and no noise at the interpreter's end."""
    child = run_python(
        """
from whisperlib import WhisperLibraryAdapter, assets
whisper = WhisperLibraryAdapter("micro", threads=1, concurrency=1)
stream = whisper.stream(assets.SAMPLES / "long_slt75.flac")
print(next(stream).text)
"""
    )
    assert (child.returncode, child.stdout.strip(), child.stderr) == (0, "The code is five zero one nine.", "")
