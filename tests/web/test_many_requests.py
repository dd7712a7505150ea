"""Two hundred requests by the real client, many at once, good ones among bad ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import requests

from tests.web.running_server import RunningServer, running_server, wait_until
from whisperlib import assets

N_REQUESTS = 200
N_CLIENTS = 16
GOOD = [row for row in assets.sample_references() if row["micro_f16_exact"] and "long" not in row["file"]]
MAX_GROWTH_BYTES = 12_000_000  # of resident memory when idle, between the first quarter and the end

Ask = Callable[[RunningServer], "tuple[int, str | None]"]


def client_of(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)


def status_and_code(answer: requests.Response) -> tuple[int, str | None]:
    assert set(answer.json()) == {"error"}
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"]
    assert answer.headers["x-should-retry"] == "false"
    return answer.status_code, answer.json()["error"]["code"]


def by_client(content: bytes, **options: Any) -> Ask:
    def ask(server: RunningServer) -> tuple[int, str | None]:
        with client_of(server) as client, pytest.raises(openai.APIStatusError) as caught:
            client.audio.transcriptions.create(**{"file": ("audio.wav", content), "model": "whisper-1", **options})
        return caught.value.status_code, caught.value.code

    return ask


def by_hand(method: str, path: str, **keywords: Any) -> Ask:
    return lambda server: status_and_code(requests.request(method, f"{server.url}{path}", timeout=60, **keywords))


SPEECH = (assets.SAMPLES / "rms_010.flac").read_bytes()
BAD: list[tuple[Ask, tuple[int, str]]] = [
    (by_client(b""), (400, "invalid_audio")),
    (by_client(b"This is not audio, whatever its name says. " * 50), (400, "invalid_audio")),
    (by_client(SPEECH[:20]), (400, "invalid_audio")),
    (by_client(SPEECH, model="enormous"), (404, "model_not_found")),
    (by_client(SPEECH, temperature=7), (400, "invalid_option")),
    (by_client(SPEECH, language="klingon"), (400, "invalid_option")),
    (by_client((assets.SAMPLES / "long_slt75.flac").read_bytes()), (413, "audio_too_long")),
    (by_hand("POST", "/transcribe", json={"audio_url": "http://169.254.169.254/latest"}), (400, "url_refused")),
    (by_hand("POST", "/transcribe", json={"audio_url": "file:///etc/passwd"}), (400, "url_refused")),
    (by_hand("GET", "/no/such/page"), (404, "not_found")),
    (by_hand("DELETE", "/transcribe"), (405, "method_not_allowed")),
]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server(max_wait_seconds=3600, max_audio_seconds=60) as server:
        yield server


def resident_bytes(server: RunningServer) -> int:
    (worker,) = server.worker_pids
    status = Path(f"/proc/{worker}/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))


def settled_bytes(server: RunningServer) -> int:
    """Return the resident memory once nothing is inside and it has stopped to fall."""
    wait_until(lambda: server.get("/health").json()["requests"]["running"] == 0, "nothing runs")
    seen = [resident_bytes(server)]

    def has_settled() -> bool:
        seen.append(resident_bytes(server))
        return len(seen) > 10 and seen[-1] >= seen[-10]

    wait_until(has_settled, "memory is given back")
    return seen[-1]


@pytest.mark.slow
def test_good_ones_are_right_and_bad_ones_a_documented_error(server: RunningServer) -> None:
    good = itertools.cycle(GOOD)
    bad = itertools.cycle(BAD)

    def transcribe(row: dict[str, Any], stream: bool) -> None:
        file = assets.SAMPLES / row["file"]
        with client_of(server) as client:
            audio = client.audio.transcriptions
            if stream:
                events = list(audio.create(file=file, model="whisper-1", stream=True))
                assert events[-1].type == "transcript.text.done"
                assert events[-1].text == row["text"]
            else:
                assert audio.create(file=file, model="whisper-1").text == row["text"]

    def refuse(ask: Ask, expected: tuple[int, str]) -> None:
        assert ask(server) == expected

    jobs: list[tuple[Any, ...]] = [
        (refuse, *next(bad)) if number % 3 == 2 else (transcribe, next(good), number % 2 == 1)
        for number in range(N_REQUESTS)
    ]
    resident = []
    for batch in range(0, N_REQUESTS, N_REQUESTS // 4):
        with ThreadPoolExecutor(N_CLIENTS) as pool:
            for done in [pool.submit(*job) for job in jobs[batch : batch + N_REQUESTS // 4]]:
                done.result()
        resident.append(settled_bytes(server))
    # The lower of two: whether a state made ahead lies in fresh pages or in used ones is 10 MB either way.
    assert min(resident[-2:]) - resident[0] < MAX_GROWTH_BYTES, resident
    assert len(server.worker_pids) == 1
