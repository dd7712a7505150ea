"""The `openai` package as it is, against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.audio import Transcription, TranscriptionTextDoneEvent, TranscriptionVerbose, TranslationVerbose
from openai.types.audio.transcription import UsageDuration

from tests.audio_files import sndfile
from tests.web.running_server import RunningServer, running_server, wait_until
from whisperlib import WhisperLibraryAdapter, assets, audio, formats
from whisperlib.options import TranscribeOptions, VadOptions

KEY = "correct-horse"
NAME = "rms_010"
TEXT = "The train to Paris leaves at five thirty-six from platform five."
MAX_BODY_BYTES = 2_000_000

Statuses = list[int]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server(api_keys=KEY, concurrency=2, max_body_bytes=MAX_BODY_BYTES) as server:
        yield server


@pytest.fixture(scope="module")
def one_seat_server() -> Iterator[RunningServer]:
    with running_server(concurrency=1, max_wait_seconds=0) as server:
        yield server


@pytest.fixture
def narrow_server(one_seat_server: RunningServer) -> RunningServer:
    """A server that lets nobody wait, and has nothing to do."""
    wait_until(lambda: is_idle(one_seat_server), "there is room")
    return one_seat_server


@pytest.fixture
def client(server: RunningServer) -> Iterator[OpenAI]:
    with client_of(server) as client:
        yield client


@pytest.fixture(scope="module")
def long_audio() -> bytes:
    """Ten minutes of speech, which take far longer than any other request here."""
    samples = audio.load(assets.SAMPLES / "long_slt75.flac")
    return sndfile(np.tile(samples, 8), 16_000, "WAV", "PCM_16")


def client_of(server: RunningServer, on_answer: Callable[[int], Any] = lambda status: None, **arguments: Any) -> OpenAI:
    """Return a client that tells the status of every answer it gets."""
    hooks = {"response": [lambda response: on_answer(response.status_code)]}
    http_client = openai.DefaultHttpxClient(event_hooks=hooks, trust_env=False)
    return OpenAI(base_url=f"{server.url}/v1", **{"api_key": KEY, "http_client": http_client, **arguments})


def read(name: str = NAME) -> tuple[str, bytes]:
    """Return a sample as a client sends it."""
    return f"{name}.flac", (assets.SAMPLES / f"{name}.flac").read_bytes()


def said(logprobs: Any) -> str:
    """Return the text that the bytes of tokens make."""
    return bytes(int(byte) for one in logprobs for byte in one.bytes).decode().strip()


def is_idle(server: RunningServer) -> bool:
    """Whether no request is inside, and none holds a slot."""
    lines = server.get("/metrics").text.splitlines()
    return {"whisper_in_flight_requests 0.0", "whisper_running_requests 0.0"} <= set(lines)


def test_the_default_answer_is_a_transcription_with_its_usage(client: OpenAI) -> None:
    answer = client.audio.transcriptions.create(file=read(), model="whisper-1")
    assert isinstance(answer, Transcription)
    assert answer.text == TEXT
    assert answer.usage == UsageDuration(type="duration", seconds=7)
    assert answer._request_id


def test_a_path_and_an_open_file_may_be_sent_too(client: OpenAI) -> None:
    path = assets.SAMPLES / f"{NAME}.flac"
    assert client.audio.transcriptions.create(file=path, model="micro").text == TEXT
    with path.open("rb") as file:
        assert client.audio.transcriptions.create(file=file, model="micro").text == TEXT


@pytest.mark.parametrize("response_format", ["text", "srt", "vtt"])
def test_a_text_format_comes_as_a_string(client: OpenAI, adapter: WhisperLibraryAdapter, response_format: Any) -> None:
    answer = client.audio.transcriptions.create(file=read(), model="whisper-1", response_format=response_format)
    result = adapter.transcribe(assets.SAMPLES / f"{NAME}.flac")
    assert answer == formats.render(result, response_format)


def test_the_verbose_answer_is_complete(client: OpenAI) -> None:
    answer = client.audio.transcriptions.create(file=read(), model="whisper-1", response_format="verbose_json")
    assert isinstance(answer, TranscriptionVerbose)
    TranscriptionVerbose.model_validate(answer.model_dump(), strict=True)
    assert (answer.text, answer.language, answer.words) == (TEXT, "english", None)
    assert answer.segments is not None
    assert [segment.text for segment in answer.segments] == [TEXT]
    assert answer.segments[0].tokens
    assert answer.duration == pytest.approx(6.343)


@pytest.mark.parametrize("granularities", [["word"], ["segment"], ["segment", "word"]])
def test_granularities_fill_what_they_name(client: OpenAI, granularities: list[Any]) -> None:
    answer = client.audio.transcriptions.create(
        file=read(), model="whisper-1", response_format="verbose_json", timestamp_granularities=granularities
    )
    assert (answer.segments is not None, answer.words is not None) == (
        "segment" in granularities,
        "word" in granularities,
    )
    if answer.words is not None:
        assert [word.word for word in answer.words] == TEXT.split()
        assert all(word.start <= word.end for word in answer.words)


def test_all_options_together_are_taken(client: OpenAI, adapter: WhisperLibraryAdapter) -> None:
    answer = client.audio.transcriptions.create(
        file=read(),
        model="micro",
        language="en",
        prompt="At the station.",
        temperature=0,
        response_format="json",
        chunking_strategy={"type": "server_vad", "threshold": 0.4, "prefix_padding_ms": 300},
        keywords=["Paris", "platform"],
        languages=["en", "de"],
    )
    options = TranscribeOptions(
        language="en",
        initial_prompt="Paris, platform. At the station.",
        carry_initial_prompt=True,
        vad_options=VadOptions(threshold=0.4, pad_seconds=0.3),
    )
    assert answer.text == adapter.transcribe(assets.SAMPLES / f"{NAME}.flac", options).text


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # by OpenAI
def test_a_translation_is_english(client: OpenAI, adapter: WhisperLibraryAdapter) -> None:
    expected = adapter.transcribe(assets.SAMPLES / "german_001.flac", task="translate").text
    assert client.audio.translations.create(file=read("german_001"), model="whisper-1").text == expected
    answer = client.audio.translations.create(
        file=read("german_001"), model="whisper-1", response_format="verbose_json"
    )
    assert isinstance(answer, TranslationVerbose)
    assert (answer.text, answer.language) == (expected, "english")
    text = client.audio.translations.create(file=read("german_001"), model="whisper-1", response_format="text")
    assert text == f"{expected}\n"


def test_a_stream_adds_up_to_the_whole_text(client: OpenAI, references: dict[str, dict[str, Any]]) -> None:
    events = list(client.audio.transcriptions.create(file=read("long_slt75"), model="whisper-1", stream=True))
    deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
    done = events[-1]
    assert isinstance(done, TranscriptionTextDoneEvent)
    assert "".join(deltas) == done.text == references["long_slt75"]["text"]
    segments = [event for event in events if event.type == "transcript.text.segment"]
    assert len(segments) == len(deltas) > 5
    assert all(segment.start < segment.end and segment.speaker == "" for segment in segments)


def test_log_probabilities_come_for_every_token_if_asked_for(client: OpenAI) -> None:
    ask = client.audio.transcriptions.create
    assert ask(file=read(), model="whisper-1").logprobs is None
    verbose = ask(file=read(), model="whisper-1", response_format="verbose_json")
    answer = ask(file=read(), model="whisper-1", include=["logprobs"])
    assert isinstance(verbose, TranscriptionVerbose)
    assert verbose.segments
    assert answer.logprobs
    assert said(answer.logprobs) == TEXT
    assert "".join(one.token or "" for one in answer.logprobs).strip() == TEXT
    values = [one.logprob for one in answer.logprobs]
    assert all(value is not None and value <= 0 for value in values)
    assert np.mean(np.array(values, float)) == pytest.approx(verbose.segments[0].avg_logprob, abs=1e-3)


def test_log_probabilities_come_with_every_delta_too(client: OpenAI) -> None:
    events = list(
        client.audio.transcriptions.create(
            file=read("long_slt75"), model="whisper-1", stream=True, include=["logprobs"]
        )
    )
    deltas = [event for event in events if event.type == "transcript.text.delta"]
    assert all(said(event.logprobs) == event.delta.strip() for event in deltas)
    done = events[-1]
    assert isinstance(done, TranscriptionTextDoneEvent)
    assert said(done.logprobs) == done.text


def test_the_bytes_of_tokens_make_characters_beyond_ascii(client: OpenAI) -> None:
    answer = client.audio.transcriptions.create(
        file=read("german_001"), model="whisper-1", language="de", include=["logprobs"]
    )
    assert said(answer.logprobs) == answer.text
    assert "ü" in answer.text


def test_the_async_client_gets_the_same(server: RunningServer, references: dict[str, dict[str, Any]]) -> None:
    async def ask() -> tuple[str, str, str]:
        http_client = openai.DefaultAsyncHttpxClient(trust_env=False)
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, http_client=http_client) as client:
            whole = client.audio.transcriptions.create(file=read("seen_010"), model="whisper-1")
            stream = await client.audio.transcriptions.create(file=read("long_slt75"), model="whisper-1", stream=True)
            deltas = ""
            async for event in stream:
                if event.type == "transcript.text.delta":
                    deltas += event.delta
                elif event.type == "transcript.text.done":
                    done = event.text
            return (await whole).text, deltas, done

    expected = [references[name]["text"] for name in ("seen_010", "long_slt75", "long_slt75")]
    assert list(asyncio.run(ask())) == expected


def test_a_stream_that_is_left_frees_its_place(narrow_server: RunningServer, long_audio: bytes) -> None:
    with client_of(narrow_server) as client:
        stream = client.audio.transcriptions.create(file=("a.wav", long_audio), model="whisper-1", stream=True)
        assert next(iter(stream)).type == "transcript.text.delta"
        stream.close()
        wait_until(lambda: is_idle(narrow_server), "the place is free")


def test_the_models_can_be_listed_and_asked_for(client: OpenAI) -> None:
    listed = list(client.models.list())
    assert [model.id for model in listed] == ["micro", "whisper-1"]
    assert client.models.retrieve("micro") == listed[0]
    assert (listed[0].object, listed[0].owned_by) == ("model", "whisperlib")
    with pytest.raises(openai.NotFoundError, match="not served here"):
        client.models.retrieve("large/v3")


def test_many_at_once_get_each_their_own(server: RunningServer, references: dict[str, dict[str, Any]]) -> None:
    names = [name for name, row in references.items() if row["micro_f16_exact"] and name != "long_slt75"] * 2

    with client_of(server) as client, ThreadPoolExecutor(8) as pool:
        create = client.audio.transcriptions.create
        waiting = [pool.submit(create, file=read(name), model="whisper-1") for name in names]
        assert [one.result().text for one in waiting] == [references[name]["text"] for name in names]


@pytest.mark.parametrize(
    ("kind", "code", "param", "fields"),
    [
        (openai.BadRequestError, "invalid_option", "language", {"language": "xx"}),
        (openai.BadRequestError, "invalid_option", "timestamp_granularities", {"timestamp_granularities": ["word"]}),
        (openai.BadRequestError, "invalid_option", "response_format", {"response_format": "diarized_json"}),
        (openai.BadRequestError, "invalid_option", "include", {"include": ["logprobs"], "response_format": "text"}),
        (openai.BadRequestError, "invalid_audio", None, {"file": ("a.mp3", b"not audio")}),
        (openai.BadRequestError, "invalid_audio", None, {"file": ("a.mp3", b"not audio"), "stream": True}),
        (openai.NotFoundError, "model_not_found", "model", {"model": "gpt-4o-transcribe"}),
        (openai.APIStatusError, "request_entity_too_large", None, {"file": ("a.wav", bytes(MAX_BODY_BYTES + 1))}),
    ],
)
def test_a_request_that_cannot_succeed_raises_once_what_is_wrong(
    server: RunningServer, kind: type[openai.APIStatusError], code: str, param: str | None, fields: dict[str, Any]
) -> None:
    statuses: Statuses = []
    with client_of(server, statuses.append) as client, pytest.raises(kind) as caught:
        client.audio.transcriptions.create(**{"file": read(), "model": "whisper-1", **fields})
    error = caught.value
    assert (error.code, error.param, error.type) == (code, param, "invalid_request_error")
    assert error.request_id
    assert statuses == [error.status_code]
    if code == "request_entity_too_large":
        assert error.status_code == 413


def test_a_wrong_key_is_refused(server: RunningServer) -> None:
    with client_of(server, api_key="wrong") as client:
        with pytest.raises(openai.AuthenticationError, match="incorrect API key"):
            client.audio.transcriptions.create(file=read(), model="whisper-1")
        with pytest.raises(openai.AuthenticationError):
            client.models.list()


def test_a_failure_that_would_come_again_is_not_tried_again(long_audio: bytes) -> None:
    statuses: Statuses = []
    with (
        running_server(request_timeout_seconds=0.1) as server,
        client_of(server, statuses.append) as client,
        pytest.raises(openai.InternalServerError, match=r"deadline of 0\.1 s") as caught,
    ):
        client.audio.transcriptions.create(file=("a.wav", long_audio), model="whisper-1")
    assert caught.value.status_code == 504
    assert statuses == [504]


def test_a_deadline_within_a_stream_is_an_error_of_the_client(long_audio: bytes) -> None:
    with running_server(request_timeout_seconds=2) as server, client_of(server) as client:
        stream = client.audio.transcriptions.create(file=("a.wav", long_audio), model="whisper-1", stream=True)
        with pytest.raises(openai.APIError, match="deadline of 2 s") as caught:
            list(stream)
    assert caught.value.code == "deadline_exceeded"


def test_a_narrow_server_is_tried_again_until_it_has_room(narrow_server: RunningServer, long_audio: bytes) -> None:
    statuses: Statuses = []
    with client_of(narrow_server) as other:
        stream = other.audio.transcriptions.create(file=("a.wav", long_audio), model="whisper-1", stream=True)
        next(iter(stream))

        def on_answer(status: int) -> None:
            statuses.append(status)
            stream.close()  # now there is room

        with client_of(narrow_server, on_answer, max_retries=100) as client:
            assert client.audio.transcriptions.create(file=read(), model="whisper-1").text == TEXT
    assert statuses[0] == 429
    assert statuses[-1] == 200


def test_without_retries_a_narrow_server_is_a_rate_limit(narrow_server: RunningServer, long_audio: bytes) -> None:
    with client_of(narrow_server, max_retries=0) as client:
        stream = client.audio.transcriptions.create(file=("a.wav", long_audio), model="whisper-1", stream=True)
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as caught:
            client.audio.transcriptions.create(file=read(), model="whisper-1")
        stream.close()
    assert (caught.value.code, caught.value.type) == ("overloaded", "rate_limit_error")
    assert int(caught.value.response.headers["Retry-After"]) >= 1


def test_a_client_that_gives_up_frees_its_place(narrow_server: RunningServer, long_audio: bytes) -> None:
    with client_of(narrow_server, timeout=2, max_retries=0) as client, pytest.raises(openai.APITimeoutError):
        client.audio.transcriptions.create(file=("a.wav", long_audio), model="whisper-1")
    wait_until(lambda: is_idle(narrow_server), "the place is free")


def test_a_server_without_a_model_says_so_and_when_to_come_back() -> None:
    with running_server(model_size="/nowhere/model.bin", failure_delay_seconds=600, wait=False) as server:
        wait_until(lambda: _status(server) == "failed", "loading has failed")
        statuses: Statuses = []
        with (
            client_of(server, statuses.append, max_retries=0) as client,
            pytest.raises(openai.InternalServerError, match="could not be loaded") as caught,
        ):
            client.audio.transcriptions.create(file=read(), model="whisper-1")
        server.stop()
    assert statuses == [503]
    assert caught.value.response.headers["x-should-retry"] == "true"
    assert int(caught.value.response.headers["Retry-After"]) >= 1


def _status(server: RunningServer) -> str:
    try:
        return str(server.get("/health").json()["status"])
    except OSError:
        return "not there"
