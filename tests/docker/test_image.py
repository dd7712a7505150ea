"""What the image holds, and what a container of it does."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.audio_files import ffmpeg
from tests.conftest import ROOT
from tests.docker.conftest import Container, Run, docker, layers
from whisperlib import assets, audio

SPEECH = assets.SAMPLES / "rms_010.flac"
TEXT = assets.sample_text(SPEECH.name)
MOST_ADDED_BYTES = 300_000_000
BASE = "debian:bookworm-slim"


def gateway() -> str:
    """Address of this machine that containers reach."""
    bridge = "{{(index .IPAM.Config 0).Gateway}}"
    return docker("network", "inspect", "bridge", "--format", bridge) or "172.17.0.1"


def shell(image: str, command: str, *options: str, check: bool = True) -> str:
    return docker("run", "--rm", *options, "--entrypoint", "sh", image, "-c", command, check=check)


class TestContents:
    def test_it_adds_little_to_its_base(self, image: str) -> None:
        added = layers(image)[len(layers(BASE)) :]
        assert 0 < sum(added) <= MOST_ADDED_BYTES

    def test_it_has_no_compiler_and_no_torch(self, image: str) -> None:
        tools = "for tool in gcc g++ cc make git cmake ninja pip pip3; do command -v $tool; done; true"
        assert shell(image, tools) == ""
        assert "No module named 'torch'" in shell(image, "python3 -c 'import torch'", check=False)
        assert "certs" not in shell(image, "find / -xdev -name 'host.crt' 2>/dev/null; true")

    def test_it_is_nobody_in_particular(self, image: str) -> None:
        assert shell(image, "id -u") == "10001"

    def test_other_commands_run(self, image: str) -> None:
        volume = f"{assets.SAMPLES}:/audio:ro"
        said = docker("run", "--rm", "-v", volume, image, "transcribe", "-m", "micro", f"/audio/{SPEECH.name}")
        assert TEXT in said
        assert docker("run", "--rm", image, "echo", "hello") == "hello"
        assert "whisper.cpp" in docker("run", "--rm", "--env=WHISPER_MODEL_SIZE=micro", image, "info")


class TestServing:
    def test_micro_answers(self, run: Run) -> None:
        answer = run(model_size="micro").transcribe(SPEECH)
        assert (answer.status_code, answer.json()["text"]) == (200, TEXT)

    def test_results_are_kept_in_a_volume_of_their_own(self, run: Run) -> None:
        container = run(model_size="micro")
        answers = [container.transcribe(SPEECH).headers["X-Whisper-Cache"] for _ in range(2)]
        assert answers == ["miss", "hit"]
        assert container.health()["cache"]["place"] == "/cache/whisperlib/results"
        assert docker("exec", container.name, "stat", "-c", "%a", "/cache/whisperlib/results") == "700"

    def test_ffmpeg_is_whole(self, run: Run, tmp_path: Path) -> None:
        clip = tmp_path / "clip.m4a"
        clip.write_bytes(ffmpeg(audio.load(SPEECH), 16_000, "ipod", "aac"))
        assert run(model_size="micro").transcribe(clip).json()["text"] == TEXT

    def test_it_is_healthy(self, run: Run) -> None:
        container = run("--health-interval=1s", model_size="micro")
        for _ in range(60):
            if container.inspect("{{.State.Health.Status}}") == "healthy":
                return
            docker("exec", container.name, "sleep", "1")
        raise AssertionError(container.inspect("{{json .State.Health}}"))

    @pytest.mark.parametrize("size", ["small", "medium"])
    def test_the_same_image_serves_small_and_medium(self, run: Run, models: str, size: str) -> None:
        # Without a network it cannot download: all that it needs is there.
        container = run("--volume", f"{models}:/models", model_size=size)
        health = container.health()
        assert health["model"]["path"] == f"/models/whisper_{size}_xeon/ggml-{size}-q5_1.bin"
        assert health["model"]["device"] == "cpu"
        assert container.transcribe(SPEECH, beam_size="1", temperature_increment="0").status_code == 200
        assert f"model {size} (q5_1" in container.log
        assert "libraries cpu-portable on cpu (no GPU" in container.log

    def test_stop_is_graceful(self, run: Run) -> None:
        container = run("--cpus=1", "--stop-timeout=90", model_size="micro", shutdown_seconds="60")
        long = assets.SAMPLES / "long_slt75.flac"
        with ThreadPoolExecutor() as pool:
            running = pool.submit(container.transcribe, long, beam_size="5")
            while not container.health()["requests"]["running"]:
                assert not running.done()
            assert container.stop() == 0
            assert running.result().status_code == 200
            assert running.result().json()["text"].startswith("The code is five zero one nine.")

    def test_a_download_is_stopped_at_once(self, run: Run) -> None:
        with socket.create_server((gateway(), 0)) as silent:
            url = f"http://{gateway()}:{silent.getsockname()[1]}"
            container = run(wait=False, model_size="tiny", artifact_url=url)
            silent.accept()[0].close()  # it tries again
            silent.accept()
            assert container.stop() == 128 + signal.SIGTERM  # and not SIGKILL, after ten seconds

    def test_limits_are_respected(self, run: Run) -> None:
        container = run("--cpus=1", "--memory=600m", model_size="micro")
        health = container.health()
        assert (health["model"]["threads"], health["model"]["concurrency"]) == (1, 1)
        assert health["cpu"]["cgroup_quota_cores"] == 1
        assert health["memory"]["cgroup_limit_bytes"] == 600 * 1024 * 1024
        assert container.transcribe(assets.SAMPLES / "long_slt75.flac").ok
        assert container.inspect("{{.State.OOMKilled}}") == "false"

    @pytest.mark.parametrize("user", ["10001", "12345:12345"])
    def test_a_read_only_root_and_any_user(self, run: Run, user: str) -> None:
        container = run("--read-only", "--tmpfs", "/tmp", "--user", user, "--cap-drop=ALL", model_size="micro")  # noqa: S108
        assert container.transcribe(SPEECH).json()["text"] == TEXT
        assert docker("exec", container.name, "id", "-u") == user.partition(":")[0]

    def test_without_a_network_nothing_is_missed(self, run: Run, models: str) -> None:
        container = run("--network=none", "--volume", f"{models}:/models", wait=False, model_size="small")
        ask = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8000/ready').status)"
        for _ in range(120):
            if docker("exec", container.name, "python3", "-c", ask, check=False).endswith("200"):
                return
            docker("exec", container.name, "sleep", "0.5", check=False)
        raise AssertionError(container.log)


class TestFailures:
    def test_an_unknown_size_is_one_line(self, image: str) -> None:
        said = docker("run", "--rm", "--env=WHISPER_MODEL_SIZE=enormous", image, check=False)
        assert said.startswith("whisperlib: WHISPER_MODEL_SIZE = 'enormous': give micro,")
        assert len(said.splitlines()) == 1

    def test_a_failed_download_is_one_line_and_a_status(self, image: str) -> None:
        variables = ("WHISPER_ARTIFACT_URL=http://127.0.0.1:9", "WHISPER_DOWNLOAD_RETRIES=0", "WHISPER_MODEL_SIZE=tiny")
        command = ["docker", "run", "--rm", *(f"--env={variable}" for variable in variables), image]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 3
        assert len(done.stderr.splitlines()) == 1
        assert "refused" in done.stderr

    def test_a_directory_of_somebody_else(self, image: str, tmp_path: Path) -> None:
        tmp_path.chmod(0o755)
        options = ["--rm", "--user=12345", f"--volume={tmp_path}:/models", "--env=WHISPER_MODEL_SIZE=tiny"]
        said = docker("run", *options, image, check=False)
        assert said.startswith("whisperlib: /models cannot be written by the user with the id 12345:")
        assert len(said.splitlines()) == 1

    def test_a_directory_that_cannot_be_written(self, image: str) -> None:
        said = docker("run", "--rm", "--read-only", "--env=WHISPER_MODEL_ROOT=/etc/models", image, check=False)
        assert "cannot be written" in said.splitlines()[-1]


class _Counting(SimpleHTTPRequestHandler):
    """Serves model files and remembers who asked for what."""

    asked: list[str] = []  # noqa: RUF012 (one server per test)

    def log_request(self, *_: object) -> None:
        self.asked.append(self.path)


# The pins of the published files cannot be met with random weights: the container is given this file's.
PINNED = """
    import dataclasses, sys
    from whisperlib.models import catalogue, store
    from whisperlib.models.catalogue import Artifact
    tiny = dataclasses.replace(catalogue.CATALOGUE["tiny"], artifacts=(Artifact("q5_1", "ggml-tiny-q5_1.bin", {pin}),))
    catalogue.CATALOGUE["tiny"] = tiny
    sys.argv = ["whisperlib", "prepare"]
    from whisperlib.cli import main
    main()
"""


def test_the_second_start_downloads_nothing(image: str, tmp_path: Path) -> None:
    from whisperlib.models.disk import sha256_of  # noqa: PLC0415

    file = tmp_path / "ggml-tiny-q5_1.bin"
    command = [sys.executable, "-m", "tools.random_weights", "tiny", str(file), "--type", "q5_1"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    host = gateway()
    volume = docker("volume", "create")
    handler: Any = partial(_Counting, directory=str(tmp_path))
    try:
        with ThreadingHTTPServer((host, 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            code = textwrap.dedent(PINNED.format(pin=f"{file.stat().st_size}, '{sha256_of(file)}'"))
            start = ["run", "--rm", "--volume", f"{volume}:/models", "--env=WHISPER_MODEL_SIZE=tiny"]
            start += [f"--env=WHISPER_ARTIFACT_URL=http://{host}:{server.server_port}"]
            for expected in (1, 1):
                said = docker(*start, image, "/opt/whisperlib/bin/python", "-c", code)
                assert "/models/whisper_tiny_xeon/ggml-tiny-q5_1.bin" in said
                assert _Counting.asked.count("/ggml-tiny-q5_1.bin") == expected
            server.shutdown()
    finally:
        docker("volume", "rm", volume, check=False)


def test_a_key_is_asked_for_where_one_is_set(run: Run) -> None:
    container: Container = run(model_size="micro", api_keys="one,two")
    assert container.transcribe(SPEECH).status_code == 401
    headers = {"Authorization": "Bearer two"}
    answer = requests.post(f"{container.url}/transcribe", data=SPEECH.read_bytes(), headers=headers, timeout=60)
    assert answer.json()["text"] == TEXT
