"""Speech to text for agents: what is shared, what is heard, and how it is stopped."""

from __future__ import annotations

import asyncio
import gc
import io
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import whisperlib
from tests.agent_audio import CLIP, TEXT, all_slots_taken, pcm, until
from whisperlib import (
    CancelToken,
    SttConfig,
    TranscribeOptions,
    WhisperLibraryAdapter,
    assets,
    create_stt,
    loader,
    system,
)
from whisperlib import stt as stt_module
from whisperlib.errors import (
    AudioError,
    DeadlineExceeded,
    ModelNotFoundError,
    OptionError,
    OverloadedError,
    TranscriptionCancelled,
)
from whisperlib.pcm import SAMPLE_RATE, Samples
from whisperlib.settings import get_settings
from whisperlib.stt import SpeechToText

pytestmark = pytest.mark.usefixtures("shared_models")

ENGLISH = {"model": "micro", "language": "en"}


@pytest.mark.parametrize(
    "same",
    [
        {"language": "English"},
        {"model": "MICRO", "language": "en-US", "profile": "fast"},
        {"language": "en", "options": {"beam_size": 1, "vad": True}},
        SttConfig(model="micro", language="en"),
    ],
)
def test_the_same_however_it_is_said_is_one_instance(same: dict[str, Any]) -> None:
    assert create_stt(same) is create_stt(ENGLISH)


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"language": "de"},
        {"language": "en", "profile": "balanced"},
        {"language": "en", "options": {"vad": False}},
        {"language": "en", "options": {"vad_options": {"threshold": 0.4}}},
    ],
)
def test_another_language_is_another_instance_on_the_same_weights(other: dict[str, Any]) -> None:
    assert create_stt(other) is not create_stt(ENGLISH)
    assert create_stt(other).adapter is create_stt(ENGLISH).adapter is whisperlib.get_model()


def test_a_language_costs_no_memory_and_is_forgotten_with_its_last_agent() -> None:
    loaded = create_stt(ENGLISH)
    gc.collect()
    before, known = system.resident_bytes(), len(stt_module._instances)
    held = [create_stt({"language": language, "options": {"vad": False}}) for language in ("de", "es", "fr", "it")]
    assert system.resident_bytes() - before < assets.MICRO_MODEL.stat().st_size / 2
    assert len(stt_module._instances) == known + len(held)
    held.clear()
    gc.collect()
    assert len(stt_module._instances) == known
    assert loaded.ready


def test_eight_that_ask_at_once_load_one_model(caplog: pytest.LogCaptureFixture) -> None:
    whisperlib.close_all()
    gate = threading.Barrier(8)

    def ask(number: int) -> tuple[int, bool]:
        gate.wait()
        stt = create_stt({"language": "en" if number % 2 else "de"})
        return id(stt.adapter), stt.ready

    with caplog.at_level(logging.INFO, "whisperlib"), ThreadPoolExecutor(8) as pool:
        answers = set(pool.map(ask, range(8)))
    assert len(answers) == 1
    assert answers.pop()[1]
    assert sum("creating an adapter" in record.message for record in caplog.records) == 1


def test_the_model_is_warm_when_it_is_given() -> None:
    stt = create_stt(ENGLISH)
    assert stt.ready
    assert stt.adapter.config.warm_up_seconds > 0


def test_a_closed_model_is_loaded_by_the_next_request(sample: Callable[[str], Samples]) -> None:
    stt = create_stt(ENGLISH)
    before = stt.adapter
    whisperlib.close_all()
    assert before.closed
    assert not stt.ready
    assert stt.transcribe(sample(CLIP)).text == TEXT
    assert create_stt(ENGLISH) is stt
    assert stt.ready


def test_the_setting_says_in_which_process_the_model_is(
    sample: Callable[[str], Samples], monkeypatch: pytest.MonkeyPatch
) -> None:
    stt, other = (SpeechToText("micro", TranscribeOptions(language=language, beam_size=1)) for language in ("en", "de"))
    with monkeypatch.context() as patch:
        isolated = get_settings().model_copy(update={"isolation": "process"})
        patch.setattr(loader, "get_settings", lambda: isolated)
        assert stt.adapter is other.adapter
    assert stt.adapter.config.process_id != os.getpid()
    assert stt.transcribe(pcm(sample(CLIP)), sample_rate=SAMPLE_RATE).text == TEXT
    whisperlib.close_all()
    assert stt.adapter is other.adapter is whisperlib.get_adapter("micro")


def test_a_failed_load_is_tried_anew() -> None:
    for _ in range(2):
        with pytest.raises(ModelNotFoundError):
            create_stt({"model": "/nowhere/at/all.bin"})


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"lang": "en"}, "unknown option 'lang': the options are language, model, options, profile"),
        ({"language": "klingon"}, "option language = 'klingon'"),
        ({"profile": "slow"}, "option profile = 'slow': input should be 'accurate', 'balanced' or 'fast'"),
        ({"model": ""}, "option model = ''"),
        ({"model": 5}, "option model = 5: input should be a valid string"),
        ({5: "en"}, "unknown option '5'"),
        ({"options": {"beams": 5}}, "unknown option 'beams'"),
        ({"options": {"beam_size": 99}}, "option beam_size = 99"),
        ({"options": {"language": "en"}}, "give language beside options, not in them"),
        ({"options": {"cancel": CancelToken()}}, "cancel can only be given with a request"),
        (["en"], "config should be SttConfig or a mapping, not list"),
    ],
)
def test_what_is_wrong_with_a_configuration_is_said(config: Any, said: str) -> None:
    with pytest.raises(OptionError) as refused:
        create_stt(config)
    assert said in str(refused.value)


def test_agents_are_fast_unless_they_say_otherwise() -> None:
    fast = create_stt(ENGLISH).options
    assert (fast.profile, fast.beam_size, fast.fit_audio_ctx) == ("fast", 1, True)
    chosen = create_stt({"profile": "balanced", "options": {"beam_size": 3}}).options
    assert (chosen.profile, chosen.beam_size, chosen.fit_audio_ctx) == ("balanced", 3, False)


@pytest.mark.parametrize(("sample_rate", "channels"), [(16_000, 1), (48_000, 2), (8_000, 1), (44_100, 1)])
def test_raw_pcm_is_heard_as_the_adapter_hears_it(
    adapter: WhisperLibraryAdapter, sample: Callable[[str], Samples], sample_rate: int, channels: int
) -> None:
    data = pcm(sample(CLIP), sample_rate, channels)
    result = create_stt(ENGLISH).transcribe(memoryview(data), sample_rate=sample_rate, channels=channels)
    assert result.text == TEXT == adapter.transcribe(sample(CLIP), language="en", profile="fast").text
    assert result.duration == pytest.approx(len(sample(CLIP)) / 16_000, abs=0.001)


def test_all_else_that_is_audio_is_taken(sample: Callable[[str], Samples]) -> None:
    path = assets.SAMPLES / f"{CLIP}.flac"
    stt = create_stt(ENGLISH)
    for source in (path, path.read_bytes(), io.BytesIO(path.read_bytes()), sample(CLIP)):
        assert stt.transcribe(source).text == TEXT
    assert stt.transcribe(sample(CLIP), sample_rate=16_000).text == TEXT


@pytest.mark.parametrize(
    ("source", "given", "error"),
    [
        (bytes(6), {"sample_rate": 16_000, "channels": 2}, AudioError),
        (bytes(8), {"sample_rate": 16_000, "channels": 0}, AudioError),
        (bytes(8), {"sample_rate": 1, "channels": 1}, AudioError),
        (b"", {"sample_rate": 16_000}, AudioError),
        (bytes(8), {"channels": 2}, OptionError),
        (assets.SAMPLES / f"{CLIP}.flac", {"sample_rate": 16_000}, OptionError),
    ],
)
def test_pcm_that_cannot_be_is_refused(source: Any, given: dict[str, int], error: type[Exception]) -> None:
    with pytest.raises(error, match=r"[a-z]"):
        create_stt(ENGLISH).transcribe(source, **given)


def test_a_detector_of_its_own_costs_none_here(sample: Callable[[str], Samples]) -> None:
    result = create_stt({"language": "en", "options": {"vad": False}}).transcribe(sample(CLIP))
    assert (result.text, result.timings.vad) == (TEXT, 0.0)
    assert create_stt(ENGLISH).transcribe(sample(CLIP)).timings.vad > 0


def test_an_option_of_one_request(sample: Callable[[str], Samples]) -> None:
    result = asyncio.run(create_stt({}).recognize(sample(CLIP), language="en", word_timestamps=True))
    assert " ".join(word.text for word in result.words) == TEXT


def test_ten_at_once_from_one_event_loop(sample: Callable[[str], Samples]) -> None:
    async def ask() -> list[str]:
        stt = create_stt(ENGLISH)
        data = pcm(sample(CLIP), 48_000)
        results = await asyncio.gather(*(stt.recognize(data, sample_rate=48_000) for _ in range(10)))
        return [result.text for result in results]

    assert asyncio.run(ask()) == [TEXT] * 10


def test_a_cancelled_task_stops_what_runs() -> None:
    seen: list[float] = []

    async def cancel() -> None:
        stt = create_stt({"language": "en", "options": {"chunking": "sequential"}})
        loop, running, stopped, token = asyncio.get_running_loop(), asyncio.Event(), threading.Event(), CancelToken()
        token.add_listener(stopped.set)

        def progress(fraction: float) -> None:
            seen.append(fraction)
            loop.call_soon_threadsafe(running.set)
            stopped.wait(60)

        task = asyncio.create_task(stt.recognize(assets.SAMPLES / "long_slt75.flac", progress=progress, cancel=token))
        await running.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert token.cancelled
        await until(lambda: stt.adapter.workload().running == 0)

    asyncio.run(cancel())
    assert max(seen) < 1.0


def test_what_waits_is_stopped_too(sample: Callable[[str], Samples]) -> None:
    async def wait() -> None:
        stt = create_stt(ENGLISH)
        waiting = stt.adapter.workload
        with all_slots_taken(stt.adapter):
            task = asyncio.create_task(stt.recognize(sample(CLIP)))
            await until(lambda: waiting().waiting == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: waiting().waiting == 0)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(stt.recognize(sample(CLIP)), 0.02)
            with pytest.raises(DeadlineExceeded):
                await stt.recognize(sample(CLIP), timeout_seconds=0.02)
            with pytest.raises(OverloadedError):
                await stt.recognize(sample(CLIP), max_wait_seconds=0)
            token = CancelToken()
            token.cancel()
            with pytest.raises(TranscriptionCancelled):
                await stt.recognize(sample(CLIP), cancel=token)
            await until(lambda: waiting().waiting == 0)
        assert (await stt.recognize(sample(CLIP))).text == TEXT

    asyncio.run(wait())
