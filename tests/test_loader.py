"""Shared adapters: one per model and settings, however many ask."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import whisperlib
from whisperlib import assets, loader
from whisperlib.errors import ModelNotFoundError


@pytest.fixture(autouse=True)
def _own_slots(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    slots: dict[Any, Any] = {}
    monkeypatch.setattr(loader, "_slots", slots)
    monkeypatch.setenv("WHISPER_MODEL_SIZE", "micro")
    monkeypatch.setenv("WHISPER_THREADS", "1")
    whisperlib.settings.get_settings.cache_clear()
    yield
    for slot in slots.values():
        if slot.adapter is not None:
            slot.adapter.close()
    whisperlib.settings.get_settings.cache_clear()


def test_eight_threads_at_the_same_moment_get_one_instance(caplog: pytest.LogCaptureFixture) -> None:
    gate = threading.Barrier(8)

    def ask(_: int) -> int:
        gate.wait()
        return id(whisperlib.get_adapter("micro", threads=1))

    with caplog.at_level(logging.INFO, "whisperlib"), ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(ask, range(8)))) == 1
    messages = [record.message for record in caplog.records]
    assert sum("creating an adapter" in message for message in messages) == 1
    assert sum("loaded micro" in message for message in messages) == 1
    assert sum("reused" in message for message in messages) == 7


def test_other_settings_are_another_instance() -> None:
    assert whisperlib.get_adapter("micro", threads=1) is whisperlib.get_adapter("micro", threads=1)
    assert whisperlib.get_adapter("micro", threads=1) is not whisperlib.get_adapter("micro", threads=1, concurrency=2)


def test_a_failed_load_is_tried_anew() -> None:
    for _ in range(2):
        with pytest.raises(ModelNotFoundError):
            whisperlib.get_adapter("/nowhere/at/all.bin")


def test_a_closed_adapter_is_replaced() -> None:
    first = whisperlib.get_adapter("micro", threads=1)
    first.close()
    assert whisperlib.get_adapter("micro", threads=1) is not first


def test_the_process_s_model() -> None:
    assert whisperlib.get_model_config()["loaded"] is False
    assert whisperlib.unload_model() is False
    model = whisperlib.load_model()
    assert whisperlib.get_model() is model
    assert whisperlib.load_model() is model
    config = whisperlib.get_model_config()
    expected = {"model": "micro", "device": "cpu", "compute_type": "f16", "beam_size": 5, "threads": 1}
    assert {key: config[key] for key in expected} == expected
    assert (config["loaded"], config["process_id"], config["path"]) == (True, os.getpid(), assets.MICRO_MODEL)
    reloaded = whisperlib.load_model(force_reload=True)
    assert reloaded is not model
    assert model.closed
    assert whisperlib.unload_model() is True
    assert reloaded.closed
    assert whisperlib.get_model_config()["loaded"] is False


def test_cuda_is_asked_of_the_driver() -> None:
    available, version, count = whisperlib.detect_cuda_availability()
    assert available == (count > 0)
    assert available <= (version is not None)


def test_all_are_closed_at_once() -> None:
    models = [whisperlib.get_adapter("micro", threads=1), whisperlib.get_model()]
    whisperlib.close_all()
    assert all(model.closed for model in models)
    assert whisperlib.get_model() not in models
    whisperlib.close_all()
    whisperlib.close_all()
