"""The micro model in a folder of its own, with its OpenVINO encoder beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from whisperlib import assets, binding, encoder
from whisperlib.binding import Library


@pytest.fixture(scope="session")
def library(library_dir: Path) -> Library:
    return binding.load(library_dir)


@pytest.fixture(scope="session")
def accelerated_model(tmp_path_factory: pytest.TempPathFactory, library: Library) -> Path:
    """Path of a copy of the micro model that was accelerated; do not change it."""
    model = Path(shutil.copy(assets.MICRO_MODEL, tmp_path_factory.mktemp("accelerated")))
    encoder.accelerate(model, library)
    return model
