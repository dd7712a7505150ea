"""The server with the model in a process of its own."""

from __future__ import annotations

import io
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import requests
import soundfile

from tests.isolation.conftest import has_gone
from tests.web.running_server import RunningServer, running_server, wait_until
from whisperlib import assets, audio, system
from whisperlib.pcm import SAMPLE_RATE

SHORT = (assets.SAMPLES / "rms_010.flac").read_bytes()
LONG = assets.SAMPLES / "long_slt75.flac"


def ask(server: RunningServer, data: bytes) -> requests.Response:
    return server.post("/transcribe", params={"beam_size": 1, "vad": "false"}, data=data)


def health(server: RunningServer) -> dict[str, Any]:
    told: dict[str, Any] = server.get("/health").json()
    return told


def metric(server: RunningServer, name: str) -> float:
    (line,) = (line for line in server.get("/metrics").text.splitlines() if line.startswith(f"{name} "))
    return float(line.split()[1])


def is_transcribed(server: RunningServer) -> bool:
    return bool(health(server)["requests"]["running"])


def test_a_crash_is_an_answer_and_the_life_of_the_process_is_the_server_s() -> None:
    minutes = io.BytesIO()
    soundfile.write(minutes, np.tile(audio.load(LONG), 5), SAMPLE_RATE, format="wav")
    with running_server(isolation="process", shutdown_seconds=60) as server, ThreadPoolExecutor(1) as pool:
        (worker,) = server.worker_pids
        model = health(server)["model"]
        assert model["isolation"] == "process"
        assert model["process_id"] != worker
        both = sum(map(system.resident_bytes, (worker, model["process_id"])))
        assert metric(server, "whisper_resident_memory_bytes") > 0.8 * both > system.resident_bytes(worker)

        lost = pool.submit(ask, server, minutes.getvalue())
        wait_until(lambda: is_transcribed(server), "it is transcribed")
        os.kill(model["process_id"], signal.SIGSEGV)
        answer = lost.result()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_crashed")
        assert answer.headers["x-should-retry"] == "true"
        assert "train to Paris" in ask(server, SHORT).json()["text"]
        assert server.worker_pids == [worker]
        assert "ended by SIGSEGV while 1 request was in it; it is being started again" in server.log

        process_id = health(server)["model"]["process_id"]
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: has_gone(process_id), "the engine's process has ended with the worker")
        server.wait_until_ready()

        process_id = health(server)["model"]["process_id"]
        slow = pool.submit(ask, server, LONG.read_bytes())
        wait_until(lambda: is_transcribed(server), "it is transcribed")
        os.kill(process_id, signal.SIGTERM)  # a service manager sends it to all processes of a service
        assert server.stop() == 0
        assert len(slow.result().json()["text"]) > 500
        assert has_gone(process_id)
