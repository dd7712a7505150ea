"""The plug-in for LiveKit Agents, in the real package: frames in, events, errors and metrics out."""

from __future__ import annotations

import asyncio
import logging
import re
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from livekit import rtc
from livekit.agents import (
    Agent,
    AgentSession,
    APIConnectionError,
    APIConnectOptions,
    APIError,
    APIStatusError,
    APITimeoutError,
    UserInputTranscribedEvent,
    inference,
    stt,
)
from livekit.agents.metrics import STTMetrics
from livekit.agents.voice.io import AudioInput

import whisperlib
from tests.agent_audio import CLIP, TEXT, all_slots_taken, pcm, until
from tests.conftest import ROOT
from whisperlib import assets, create_stt
from whisperlib.livekit import STT
from whisperlib.pcm import Samples

pytestmark = pytest.mark.usefixtures("shared_models")

PAGE = (ROOT / "docs/agents.md").read_text(encoding="utf-8")
ONCE = APIConnectOptions(max_retry=0)
ENGLISH = {"model": "micro", "language": "en"}
WORDS = {**ENGLISH, "options": {"word_timestamps": True}}


def frames(samples: Samples, sample_rate: int = 16_000, channels: int = 1) -> list[rtc.AudioFrame]:
    """Cut samples at 16 kHz into frames of 10 ms, as a room gives them."""
    data, n = pcm(samples, sample_rate, channels), sample_rate // 100 * channels * 2
    pieces = (data[start : start + n] for start in range(0, len(data), n))
    return [rtc.AudioFrame(piece, sample_rate, channels, len(piece) // channels // 2) for piece in pieces]


@pytest.mark.parametrize(("sample_rate", "channels"), [(48_000, 2), (16_000, 1)])
def test_frames_are_heard_as_the_adapter_hears_them(
    sample: Callable[[str], Samples], sample_rate: int, channels: int
) -> None:
    buffer = frames(sample(CLIP), sample_rate, channels)
    recognizer = STT(WORDS)
    event = asyncio.run(recognizer.recognize(buffer))
    assert event.type is stt.SpeechEventType.FINAL_TRANSCRIPT
    [data] = event.alternatives
    expected = recognizer.speech_to_text.transcribe(
        pcm(sample(CLIP), sample_rate, channels), sample_rate=sample_rate, channels=channels
    )
    assert (data.text, data.language) == (TEXT, "en") == (expected.text, expected.language)
    assert (data.start_time, data.end_time) == (expected.segments[0].start, expected.segments[-1].end)
    assert 0.0 < data.confidence <= 1.0
    assert data.words is not None
    said = [(str(word), word.start_time, word.end_time, word.confidence) for word in data.words]
    assert said == [(word.text, word.start, word.end, word.probability) for word in expected.words]
    one = asyncio.run(recognizer.recognize(rtc.combine_audio_frames(buffer)))
    assert one.alternatives[0].text == TEXT
    assert one.request_id != event.request_id


def test_what_it_says_of_itself() -> None:
    recognizer = STT(ENGLISH)
    capabilities = recognizer.capabilities
    assert (capabilities.streaming, capabilities.interim_results, capabilities.aligned_transcript) == (
        False,
        False,
        False,
    )
    assert STT(WORDS).capabilities.aligned_transcript == "word"
    assert (recognizer.model, recognizer.provider, recognizer.label) == (
        "micro",
        "whisperlib",
        "whisperlib.livekit.STT",
    )


def test_silence_is_no_text(silence: Samples) -> None:
    [data] = asyncio.run(STT(ENGLISH).recognize(frames(silence))).alternatives
    assert (data.text, data.confidence, data.words, data.language) == ("", 0.0, None, "en")


def test_a_language_of_one_request(sample: Callable[[str], Samples]) -> None:
    buffer = frames(sample("german_001"))
    [data] = asyncio.run(STT(ENGLISH).recognize(buffer, language="de-DE")).alternatives
    assert (data.text, data.language) == (assets.sample_text("german_001.flac"), "de")


def test_agents_share_one_model(caplog: pytest.LogCaptureFixture, sample: Callable[[str], Samples]) -> None:
    with caplog.at_level(logging.INFO, "whisperlib"):
        whisperlib.close_all()
        first, second, german = STT(ENGLISH), STT(create_stt(ENGLISH)), STT({"language": "de"})
    assert first.speech_to_text is second.speech_to_text
    assert first.speech_to_text.adapter is german.speech_to_text.adapter
    assert sum("loaded micro" in record.message for record in caplog.records) == 1
    asyncio.run(first.aclose())
    assert asyncio.run(second.recognize(frames(sample(CLIP)))).alternatives[0].text == TEXT


def test_ten_at_once_and_a_metric_of_each(sample: Callable[[str], Samples]) -> None:
    recognizer = STT(ENGLISH)
    metrics: list[STTMetrics] = []
    recognizer.on("metrics_collected", metrics.append)

    async def ask() -> list[stt.SpeechEvent]:
        return await asyncio.gather(*(recognizer.recognize(frames(sample(CLIP), 48_000, 2)) for _ in range(10)))

    events = asyncio.run(ask())
    assert [event.alternatives[0].text for event in events] == [TEXT] * 10
    assert {metric.request_id for metric in metrics} == {event.request_id for event in events}
    assert len(metrics) == 10
    for metric in metrics:
        assert metric.audio_duration == pytest.approx(len(sample(CLIP)) / 16_000, abs=0.001)
        assert metric.metadata is not None
        assert (metric.metadata.model_name, metric.metadata.model_provider) == ("micro", "whisperlib")


def test_what_waits_is_stopped_by_task_timeout_and_close(sample: Callable[[str], Samples]) -> None:
    errors: list[stt.STTError] = []

    async def wait() -> None:
        recognizer = STT(ENGLISH)
        recognizer.on("error", errors.append)
        workload = recognizer.speech_to_text.adapter.workload
        buffer = frames(sample(CLIP))
        with all_slots_taken(recognizer.speech_to_text.adapter):
            task = asyncio.create_task(recognizer.recognize(buffer))
            await until(lambda: workload().waiting == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: workload().waiting == 0)
            assert not errors

            with pytest.raises(APITimeoutError, match=r"deadline of 0\.05 s"):
                await recognizer.recognize(buffer, conn_options=APIConnectOptions(max_retry=0, timeout=0.05))
            with pytest.raises(APIConnectionError, match="after 2 attempts"):
                await recognizer.recognize(buffer, conn_options=APIConnectOptions(max_retry=1, timeout=0.05))
            assert [error.recoverable for error in errors] == [False, True, False]

            task = asyncio.create_task(recognizer.recognize(buffer, conn_options=APIConnectOptions(timeout=0)))
            await until(lambda: workload().waiting == 1)
            await recognizer.aclose()
            with pytest.raises(APIConnectionError):
                await task
            await until(lambda: workload().waiting == 0)
        with pytest.raises(APIConnectionError, match="closed"):
            await recognizer.recognize(buffer)

    asyncio.run(wait())


@pytest.mark.parametrize(("samples", "language", "status"), [(160, "klingon", 400), (0, "en", 400), (None, "en", 400)])
def test_what_cannot_be_heard_is_not_tried_again(samples: int | None, language: str, status: int) -> None:
    errors: list[stt.STTError] = []
    recognizer = STT(ENGLISH)
    recognizer.on("error", errors.append)
    buffer = [] if samples is None else [rtc.AudioFrame.create(16_000, 1, samples)]
    with pytest.raises(APIStatusError) as refused:
        asyncio.run(recognizer.recognize(buffer, language=language))
    assert (refused.value.status_code, refused.value.retryable) == (status, False)
    assert [error.recoverable for error in errors] == [False]


def test_errors_of_the_engine_in_livekit_s_words(sample: Callable[[str], Samples]) -> None:
    recognizer = STT(ENGLISH)
    buffer = frames(sample(CLIP))

    async def refuse() -> APIError:
        recognizer = STT({**ENGLISH, "options": {"max_wait_seconds": 0}})
        with all_slots_taken(recognizer.speech_to_text.adapter), pytest.raises(APIError) as refused:
            await recognizer.recognize(buffer, conn_options=ONCE)
        return refused.value

    async def close() -> APIError:
        adapter = recognizer.speech_to_text.adapter
        with all_slots_taken(adapter):
            task = asyncio.create_task(recognizer.recognize(buffer, conn_options=ONCE))
            await until(lambda: adapter.workload().waiting == 1)
            closing = asyncio.get_running_loop().run_in_executor(None, whisperlib.close_all)
            await until(lambda: adapter.closed)
        with pytest.raises(APIError) as stopped:
            await task
        await closing
        return stopped.value

    error = asyncio.run(refuse())
    assert isinstance(error, APIStatusError)
    assert (error.status_code, error.retryable) == (429, True)
    error = asyncio.run(close())
    assert (type(error), error.retryable) == (APIConnectionError, True)
    assert asyncio.run(recognizer.recognize(buffer)).alternatives[0].text == TEXT


@pytest.mark.parametrize(("sample_rate", "channels"), [(16_000, 1), (48_000, 1)])
def test_streamed_through_livekit_s_adapter_and_detector(
    sample: Callable[[str], Samples], silence: Samples, sample_rate: int, channels: int
) -> None:
    async def listen() -> list[stt.SpeechEvent]:
        adapter = stt.StreamAdapter(stt=STT(ENGLISH), vad=inference.VAD())
        async with adapter.stream() as stream:
            for name in (CLIP, "rms_002"):
                for part in (sample(name), silence[:16_000]):
                    for frame in frames(part, sample_rate, channels):
                        stream.push_frame(frame)
            stream.end_input()
            return [event async for event in stream]

    events = asyncio.run(listen())
    kinds = [event.type for event in events]
    assert kinds.count(stt.SpeechEventType.START_OF_SPEECH) == kinds.count(stt.SpeechEventType.END_OF_SPEECH) == 2
    heard = [event for event in events if event.type is stt.SpeechEventType.FINAL_TRANSCRIPT]
    assert [event.alternatives[0].text for event in heard] == [TEXT, assets.sample_text("rms_002.flac")]


class Microphone(AudioInput):
    """What a room gives a session to hear; nothing comes after the last frame."""

    def __init__(self, heard: list[rtc.AudioFrame]) -> None:
        super().__init__(label="microphone")
        self._heard = iter(heard)

    async def __anext__(self) -> rtc.AudioFrame:
        await asyncio.sleep(0)
        for frame in self._heard:
            return frame
        await asyncio.get_running_loop().create_future()
        raise StopAsyncIteration


def test_a_session_of_an_agent_hears(sample: Callable[[str], Samples], silence: Samples) -> None:
    async def listen() -> tuple[str, str | None]:
        heard: asyncio.Future[UserInputTranscribedEvent] = asyncio.get_running_loop().create_future()
        session: AgentSession[None] = AgentSession(stt=STT(ENGLISH), vad=inference.VAD())
        session.on("user_input_transcribed", heard.set_result)
        session.input.audio = Microphone([*frames(sample(CLIP), 48_000), *frames(silence, 48_000)])
        await session.start(agent=Agent(instructions="Listen."))
        event = await heard
        await session.aclose()
        return event.transcript, event.language

    assert asyncio.run(listen()) == (TEXT, "en")


def test_without_the_package_it_says_what_to_install(
    run_python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    child = run_python(
        "import sys\n"
        "sys.modules['livekit'] = None\n"
        "import whisperlib\n"
        "try:\n"
        "    import whisperlib.livekit\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    assert "pip install 'whisperlib[livekit]'" in child.stdout, child.stderr


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_page_s_examples_run(
    run_python: Callable[..., subprocess.CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    [plain, streamed, _] = examples()
    child = run_python(f"{plain}\n{streamed}")
    assert child.stdout.splitlines() == [TEXT, TEXT], child.stderr


def test_the_page_s_agent_loads_its_model_before_its_job() -> None:
    agent: dict[str, Any] = {"__name__": "agent"}
    exec(compile(examples()[-1], "docs/agents.md", "exec"), agent)  # noqa: S102  (our own page)
    process = agent["JobProcess"](executor_type=None, user_arguments=None, http_proxy=None)
    assert agent["server"].setup_fnc is agent["load"]
    agent["load"](process)
    assert create_stt(agent["SPEECH"]).ready


def test_the_page_s_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)", PAGE):
        if "://" not in target:
            assert (ROOT / "docs" / target).exists(), target
