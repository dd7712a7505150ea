"""`entrypoint.sh` and `whisperlib prepare`: what is chosen, what is fetched, and one line where it cannot be."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.conftest import ROOT
from tests.web.running_server import running_server
from whisperlib import assets, encoder, models
from whisperlib.cli import cli, prepare
from whisperlib.encoder.files import ABOUT, directory_of
from whisperlib.errors import ModelFileError
from whisperlib.models import Artifact, Model
from whisperlib.models.disk import sha256_of
from whisperlib.settings import get_settings

ENTRYPOINT = ROOT / "entrypoint.sh"


def entrypoint(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    variables = {f"WHISPER_{name.upper()}": value for name, value in settings.items()}
    return subprocess.run(
        [str(ENTRYPOINT), *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def refusal(*arguments: str, **settings: str) -> str:
    """Return the one line on stderr of a start that fails."""
    done = entrypoint(*arguments, **settings)
    assert done.returncode == 3
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


class TestEntrypoint:
    def test_it_serves(self) -> None:
        with running_server(command=(str(ENTRYPOINT),)) as server:
            audio = (assets.SAMPLES / "rms_010.flac").read_bytes()
            assert server.post("/transcribe", data=audio).json()["text"] == assets.sample_text("rms_010.flac")
            (worker,) = server.worker_pids
            environment = Path(f"/proc/{worker}/environ").read_bytes().split(b"\0")
            directory = server.get("/health").json()["model"]["library_directory"]
            assert f"WHISPER_LIB_DIR={directory}".encode() in environment
            path = next(line for line in environment if line.startswith(b"LD_LIBRARY_PATH="))
            assert path.decode().removeprefix("LD_LIBRARY_PATH=").split(":")[0] == directory

    def test_it_is_the_server_itself_that_gets_the_signals(self) -> None:
        with running_server(command=(str(ENTRYPOINT), "serve")) as server:
            assert "whisperlib" in Path(f"/proc/{server.pid}/cmdline").read_text(encoding="utf-8")
            assert server.stop() == 0

    def test_it_says_what_it_chose_and_why(self) -> None:
        with running_server(command=(str(ENTRYPOINT),), device="auto") as server:
            lines = server.log.splitlines()
        assert lines[0].startswith("whisperlib: model micro (f16, 19 MB): /")
        assert lines[1].startswith("whisperlib: libraries ")
        assert " on c" in lines[1]

    def test_the_server_says_too_what_was_passed_over(self, library_dir: Path, tmp_path: Path) -> None:
        for variant in ("cpu", "cpu-portable"):
            shutil.copytree(library_dir, tmp_path / variant, symlinks=True)
            (tmp_path / variant / "selftest.json").unlink(missing_ok=True)
            info = tmp_path / variant / "build-info.json"
            info.write_text(json.dumps({**json.loads(info.read_text()), "variant": variant}))
        for library in (tmp_path / "cpu").glob("libggml-cpu*.so*"):
            if not library.is_symlink():
                library.write_bytes(library.read_bytes()[:100_000])
        with running_server(command=(str(ENTRYPOINT),), lib_dir=tmp_path) as server:
            model = server.get("/health").json()["model"]
            log = server.log
        assert model["library_variant"] == "cpu-portable"
        (reason,) = model["passed_over"]
        assert reason.startswith(f"{tmp_path / 'cpu'}: self-test failed")
        assert reason in log

    @pytest.mark.parametrize("size", ["small", "medium"])
    def test_the_environment_alone_chooses_the_model(self, tmp_path: Path, size: str) -> None:
        file = tmp_path / f"whisper_{size}_xeon" / f"ggml-{size}-q5_1.bin"
        file.parent.mkdir()
        narrow = [size, str(file), "--type", "q5_1", "--layers", "3", "--width", "256"]
        subprocess.run(
            [sys.executable, "-m", "tools.random_weights", *narrow], cwd=ROOT, check=True, capture_output=True
        )
        with running_server(command=(str(ENTRYPOINT),), model_size=size, model_root=tmp_path) as server:
            model = server.get("/health").json()["model"]
        assert (model["model"], model["path"]) == (size, str(file))

    def test_the_encoder_that_is_asked_for_is_made_once(self, tmp_path: Path) -> None:
        model = Path(shutil.copy(assets.MICRO_MODEL, tmp_path))
        first = entrypoint("prepare", model_size=str(model), encoder="openvino")
        assert "encoder: comparing in f32" in first.stderr
        assert "whisperlib: encoder openvino " in first.stderr
        again = entrypoint("prepare", model_size=str(model), encoder="openvino")
        assert "comparing" not in again.stderr
        assert "whisperlib: encoder openvino " in again.stderr
        assert first.stdout == again.stdout

    def test_an_encoder_that_is_refused_is_made_anew(self, tmp_path: Path) -> None:
        model = Path(shutil.copy(assets.MICRO_MODEL, tmp_path))
        assert "whisperlib: encoder ggml (" in entrypoint("prepare", model_size=str(model)).stderr
        about = directory_of(model, "float") / ABOUT
        about.parent.mkdir()
        about.write_text('{"kind": "float", "format": 0, "model": "", "relative_errors": {}}')
        told = entrypoint("prepare", model_size=str(model)).stderr
        assert "encoder: comparing in f32" in told
        assert "whisperlib: encoder openvino " in told
        assert encoder.find(model).relative_errors["f32"] < 0.01
        assert "comparing" not in entrypoint("prepare", model_size=str(model)).stderr

    def test_a_start_does_not_fail_where_an_encoder_cannot_be_made_anew(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = Path(shutil.copy(assets.MICRO_MODEL, tmp_path))
        about = directory_of(model, "float") / ABOUT
        about.parent.mkdir()
        about.write_text("damaged")

        def refuse(*_: object, **__: object) -> None:
            raise ModelFileError("no room")

        monkeypatch.setattr("whisperlib.encoder.accelerate", refuse)
        monkeypatch.setenv("WHISPER_MODEL_SIZE", str(model))
        done = CliRunner().invoke(cli, ["prepare"])
        assert done.exit_code == 0
        assert "whisperlib: encoder: not made anew: no room\nwhisperlib: encoder ggml (" in done.stderr
        done = CliRunner().invoke(cli, ["prepare"], env={"WHISPER_ENCODER": "openvino"})
        assert (done.exit_code, done.stdout) == (3, "")

    def test_options_of_the_server_hold_for_what_is_prepared(self, tmp_path: Path) -> None:
        settings = {"model_root": str(tmp_path), "artifact_url": "http://127.0.0.1:9", "download_retries": "0"}
        assert "ggml-tiny-q5_1.bin" in refusal("serve", "--model", "tiny", **settings)
        done = entrypoint("serve", "--help", **settings)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("Usage: whisperlib serve")

    def test_a_download_can_be_stopped(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            variables = {"WHISPER_MODEL_ROOT": str(tmp_path), "WHISPER_ARTIFACT_URL": url, "WHISPER_MODEL_SIZE": "tiny"}
            with subprocess.Popen([str(ENTRYPOINT)], env={**os.environ, **variables}) as process:
                connection, _ = silent.accept()
                process.terminate()
                assert process.wait(timeout=60) == 128 + signal.SIGTERM
            with connection:
                while connection.recv(4096):
                    pass  # it ends when the child that downloads has ended, too

    def test_a_command_of_whisperlib(self) -> None:
        done = entrypoint("transcribe", "-m", "micro", str(assets.SAMPLES / "rms_010.flac"))
        assert (done.returncode, done.stdout) == (0, assets.sample_text("rms_010.flac") + "\n")

    def test_any_other_command(self) -> None:
        done = entrypoint("sh", "-c", "echo $0 $1; exit 7", "one", "two words")
        assert (done.returncode, done.stdout) == (7, "one two words\n")

    def test_an_unknown_size(self) -> None:
        assert refusal(model_size="enormous").startswith("whisperlib: WHISPER_MODEL_SIZE = 'enormous': give micro,")

    def test_a_directory_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        line = refusal(model_size="small", model_root=str(tmp_path / "file"), artifact_url="http://127.0.0.1:9")
        assert "cannot be written" in line
        assert str(tmp_path / "file") in line

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere; tests/docker does this")
    def test_a_directory_of_somebody_else(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o555)
        line = refusal(model_size="tiny", model_root=str(tmp_path), artifact_url="http://127.0.0.1:9")
        assert f"{tmp_path} cannot be written by the user with the id {os.geteuid()}" in line

    def test_a_failed_download(self, tmp_path: Path) -> None:
        settings = {"model_root": str(tmp_path), "artifact_url": "http://127.0.0.1:9", "download_retries": "0"}
        assert "http://127.0.0.1:9/ggml-tiny-q5_1.bin" in refusal(model_size="tiny", **settings)
        assert not list(tmp_path.rglob("*.bin"))


class _Files(SimpleHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012 (one server per test)

    def log_request(self, *_: object) -> None:
        self.asked.append(self.path)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A real host with the micro model under the name of tiny, whose pin is that file's: no real one is at hand."""
    (tmp_path / "shop").mkdir()
    file = tmp_path / "shop" / "ggml-tiny.bin"
    shutil.copyfile(assets.MICRO_MODEL, file)
    artifact = Artifact("f16", file.name, file.stat().st_size, sha256_of(file))
    tiny = Model("tiny", "whisper_tiny_xeon", "f16", artifacts=(artifact,))
    monkeypatch.setitem(models.CATALOGUE, "tiny", tiny)
    _Files.asked.clear()
    handler: Any = partial(_Files, directory=str(tmp_path / "shop"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("WHISPER_ARTIFACT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("WHISPER_MODEL_ROOT", str(tmp_path / "models of mine"))
        monkeypatch.setenv("WHISPER_MODEL_SIZE", "tiny")
        get_settings.cache_clear()
        yield _Files.asked
        server.shutdown()
    get_settings.cache_clear()


class TestPrepare:
    def test_what_is_missing_is_fetched_once(self, shop: list[str], tmp_path: Path) -> None:
        for _ in range(2):
            done = CliRunner().invoke(cli, ["prepare"])
            assert done.exit_code == 0, done.output
            assert str(tmp_path / "models of mine/whisper_tiny_xeon/ggml-tiny.bin") in done.stderr
        assert len(shop) == 1

    def test_so_are_those_that_are_to_be_loaded_beside_it(
        self, shop: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WHISPER_MODEL_SIZE", "micro")
        monkeypatch.setenv("WHISPER_PRELOAD", "tiny,micro")
        done = CliRunner().invoke(cli, ["prepare"])
        assert done.exit_code == 0, done.output
        assert len(shop) == 1
        named = [line.split()[2] for line in done.stderr.splitlines() if line.startswith("whisperlib: model ")]
        assert named == ["micro", "tiny"]

    def test_a_log_tells_how_far_a_download_is(self, shop: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(prepare, "SAY_EVERY_SECONDS", 0.0)
        done = CliRunner().invoke(cli, ["prepare"])
        assert "whisperlib: downloading tiny: 19 of 19 MB" in done.stderr

    def test_the_shell_gets_paths_with_spaces_whole(self, tmp_path: Path, library_dir: Path) -> None:
        place = tmp_path / "it's here"
        place.mkdir()
        (place / "cpu").symlink_to(library_dir)
        command = f'eval "$({ENTRYPOINT} prepare)"; printf %s "$LD_LIBRARY_PATH"'
        variables = {"WHISPER_MODEL_SIZE": "micro", "LD_LIBRARY_PATH": str(place)}
        done = subprocess.run(
            ["sh", "-c", command], env={**os.environ, **variables}, capture_output=True, text=True, check=True
        )
        assert done.stdout == f"{library_dir}:{place}"
