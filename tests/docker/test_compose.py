"""`docker-compose up api`, from the project's root, with one size after the other."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT
from tests.docker.conftest import Container, docker
from whisperlib import assets
from whisperlib.settings import Settings

SET_BY_THE_IMAGE = {"host", "port", "lib_dir", "model_root", "batches"}
COMPOSE = ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]


@pytest.fixture
def project(models: str) -> Iterator[str]:
    """Name of a compose project that has the volume with the models."""
    name = models.removesuffix("_models")
    yield name
    subprocess.run([*COMPOSE, "--project-name", name, "down"], cwd=ROOT, capture_output=True, check=False)


def compose(project: str, image: str, port: int, size: str, *arguments: str) -> None:
    variables = {"WHISPER_IMAGE": image, "WHISPER_PUBLISH": f"127.0.0.1:{port}", "WHISPER_MODEL_SIZE": size}
    done = subprocess.run(
        [*COMPOSE, "--project-name", project, *arguments],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_small_then_medium_without_a_new_image(project: str, image: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    before = docker("inspect", "--format", "{{.Id}}", image)
    for size in ("small", "medium"):
        compose(project, image, port, size, "up", "--no-build", "--detach", "api")
        name = docker("ps", "--quiet", "--filter", f"label=com.docker.compose.project={project}")
        container = Container(name, f"http://127.0.0.1:{port}")
        container.wait_until_ready()
        assert container.health()["model"]["model"] == size
        assert container.transcribe(assets.SAMPLES / "rms_010.flac", beam_size="1").status_code == 200
        assert docker("inspect", "--format", "{{.Image}}", name) == before
        compose(project, image, port, size, "down")
        assert docker("ps", "--quiet", "--filter", f"label=com.docker.compose.project={project}") == ""


def test_every_setting_reaches_the_container() -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    passed = {name.lower() for name in re.findall(r"^    WHISPER_([A-Z_]+):", text, re.MULTILINE)}
    assert passed == set(Settings.model_fields) - SET_BY_THE_IMAGE


def test_the_file_is_sound_and_has_a_profile_for_gpus() -> None:
    command = [*COMPOSE, "config", "--services"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "api" in done.stdout.split()
    assert "profiles" in (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
