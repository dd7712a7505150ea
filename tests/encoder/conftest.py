"""The native library, loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from whisperlib import binding
from whisperlib.binding import Library


@pytest.fixture(scope="session")
def library(library_dir: Path) -> Library:
    return binding.load(library_dir)
