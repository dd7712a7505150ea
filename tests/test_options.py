"""Options: every bound, every message, and cancel tokens."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pydantic
import pytest

from whisperlib.errors import OptionError
from whisperlib.options import CancelToken, Frozen, TranscribeOptions, VadOptions, resolve_options

# Name, allowed values, refused values.
NUMBERS: list[tuple[str, tuple[Any, ...], tuple[Any, ...]]] = [
    ("beam_size", (1, 8), (0, -1, 9, 1.5)),
    ("best_of", (1, 8), (0, 9, 2.5)),
    ("temperature", (0.0, 1.0, 1), (-0.001, 1.001)),
    ("temperature_increment", (0.0, 0.05, 1.0), (-0.001, 1.001, 0.049, 1e-9, 5e-324)),
    ("logprob_threshold", (-100.0, 0.0), (-100.001, 0.001)),
    ("entropy_threshold", (0.0, 10.0), (-0.001, 10.001)),
    ("no_speech_threshold", (0.0, 1.0), (-0.001, 1.001)),
    ("max_segment_length", (0, 10_000), (-1, 10_001)),
    ("offset_seconds", (0.0, 1e6), (-0.001, 1e6 + 1)),
    ("duration_seconds", (None, 1e-6, 1e6), (0, -1, 1e6 + 1)),
    ("audio_ctx", (0, 256, 512, 768, 1024, 1280, 1500), (-256, 1, 128, 255, 257, 384, 1499, 1501, 1536, 1792)),
    ("threads", (None, 1, 512), (0, -1, 513)),
    ("timeout_seconds", (None, 1e-6, 1e7), (0, -1, 1e7 + 1)),
    ("max_wait_seconds", (None, 0, 1e7), (-1, 1e7 + 1)),
]
VAD_NUMBERS: list[tuple[str, tuple[Any, ...], tuple[Any, ...]]] = [
    ("threshold", (0.05, 0.95), (0.049, 0.951)),
    ("min_speech_seconds", (0.0, 10.0), (-0.001, 10.001)),
    ("min_silence_seconds", (0.0, 30.0), (-0.001, 30.001)),
    ("pad_seconds", (0.0, 5.0), (-0.001, 5.001)),
]
TABLE = [(TranscribeOptions, *row) for row in NUMBERS] + [(VadOptions, *row) for row in VAD_NUMBERS]
HUGE = pytest.param(10**400, id="more than a double holds")
WORSE = pytest.param(10**5000, id="more than Python prints")
BOOLEANS = [
    "background",
    "cache",
    "suppress_non_speech",
    "carry_initial_prompt",
    "condition_on_previous_text",
    "word_timestamps",
    "vad",
    "fit_audio_ctx",
]
OTHERS = [
    "profile",
    "language",
    "task",
    "initial_prompt",
    "vad_options",
    "chunking",
    "on_interrupt",
    "cancel",
    "progress",
]


def refusal(kind: type[Frozen], **values: Any) -> str:
    with pytest.raises(OptionError) as caught:
        kind(**values)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


def test_the_tables_here_know_every_option() -> None:
    assert sorted([row[0] for row in NUMBERS] + BOOLEANS + OTHERS) == sorted(TranscribeOptions.model_fields)
    assert [row[0] for row in VAD_NUMBERS] == list(VadOptions.model_fields)
    for kind in (TranscribeOptions, VadOptions):
        assert all(field.description for field in kind.model_fields.values())


@pytest.mark.parametrize(("kind", "name", "allowed", "refused"), TABLE, ids=lambda part: str(part)[:30])
def test_bounds(kind: type[Frozen], name: str, allowed: tuple[Any, ...], refused: tuple[Any, ...]) -> None:
    for value in allowed:
        assert getattr(kind(**{name: value}), name) == value
    for value in refused:
        message = refusal(kind, **{name: value})
        assert message.startswith(f"option {name} = {value!r}: input should be "), message


@pytest.mark.parametrize(("kind", "name"), [row[:2] for row in TABLE], ids=lambda part: str(part)[:30])
@pytest.mark.parametrize(
    "value",
    ["five", "", [], {}, object(), b"\xff", 1j, "nan", HUGE, WORSE],
)
def test_numbers_take_numbers_only(kind: type[Frozen], name: str, value: Any) -> None:
    assert refusal(kind, **{name: value}).startswith(f"option {name} = ")


@pytest.mark.parametrize(("kind", "name"), [row[:2] for row in TABLE], ids=lambda part: str(part)[:30])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_are_finite(kind: type[Frozen], name: str, value: float) -> None:
    assert refusal(kind, **{name: value}) == f"option {name} = {value}: input should be a finite number"


@pytest.mark.parametrize("name", [row[0] for row in NUMBERS if None not in row[1]] + BOOLEANS)
def test_none_is_not_a_value_of_these(name: str) -> None:
    assert refusal(TranscribeOptions, **{name: None}).startswith(f"option {name} = None: ")


@pytest.mark.parametrize("name", BOOLEANS)
def test_booleans(name: str) -> None:
    for value in (True, False):
        assert getattr(TranscribeOptions(**{name: value}), name) is value
    refused: tuple[Any, ...] = (2, "perhaps", [], 0.5)
    for wrong in refused:
        assert refusal(TranscribeOptions, **{name: wrong}).startswith(f"option {name} = {wrong!r}: ")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("task", "sing", "'transcribe' or 'translate'"),
        ("on_interrupt", "ignore", "'raise' or 'partial'"),
        ("profile", "quick", "'accurate', 'balanced' or 'fast'"),
        ("chunking", "both", "'sequential' or 'parallel'"),
        ("cancel", threading.Event(), "instance of CancelToken"),
        ("progress", 3, "callable"),
        ("language", 7, "string"),
        ("initial_prompt", ["a"], "string"),
        ("vad_options", 3, "VadOptions"),
        ("vad_options", None, "VadOptions"),
    ],
)
def test_what_is_allowed_is_said(name: str, value: Any, says: str) -> None:
    message = refusal(TranscribeOptions, **{name: value})
    assert message.startswith(f"option {name} = ")
    assert says in message


@pytest.mark.parametrize(
    "value",
    [np.eye(9), "one\ntwo\u2028three", "a" * 20_000, HUGE, WORSE, ["b\r\n"] * 999, "9" * 5000],
    ids=range(7),
)
def test_a_refused_value_of_any_size_gives_one_short_line(value: Any) -> None:
    assert refusal(TranscribeOptions, beam_size=value).startswith("option beam_size = ")
    assert refusal(TranscribeOptions, language=value).startswith("option language = ")


def test_unknown_options_list_the_known() -> None:
    message = refusal(TranscribeOptions, beamsize=3)
    assert message.startswith("unknown option 'beamsize': the options are ")
    assert set(message.split(" are ")[1].split(", ")) == set(TranscribeOptions.model_fields)
    assert "'treshold'" in refusal(VadOptions, treshold=0.5)


def test_options_are_frozen() -> None:
    options = TranscribeOptions()
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        options.beam_size = 3  # type: ignore[misc]
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        options.vad_options.threshold = 0.3  # type: ignore[misc]
    assert options == TranscribeOptions()
    assert hash(options) == hash(TranscribeOptions())


def test_replace_checks_again_and_keeps_the_rest() -> None:
    options = TranscribeOptions(language="German", beam_size=2, initial_prompt="Zahlen", audio_ctx=512)
    changed = options.replace(beam_size=1, vad_options={"threshold": 0.3})
    assert (changed.beam_size, changed.vad_options.threshold) == (1, 0.3)
    assert (changed.language, changed.initial_prompt, changed.audio_ctx) == ("de", "Zahlen", 512)
    assert changed.model_fields_set == {
        "language", "beam_size", "initial_prompt", "audio_ctx", "vad_options",
    }  # fmt: skip
    assert (options.beam_size, options.vad_options) == (2, VadOptions())
    assert options.replace() == options
    for wrong in ({"beam_size": 9}, {"audio_ctx": 100}, {"colour": "red"}, {"language": "klingon"}):
        with pytest.raises(OptionError, match=next(iter(wrong))):
            options.replace(**wrong)
    assert VadOptions(threshold=0.3).replace(pad_seconds=0.0) == VadOptions(threshold=0.3, pad_seconds=0.0)


def test_callbacks_survive_replace() -> None:
    token = CancelToken()
    seen: list[float] = []
    changed = TranscribeOptions(cancel=token, progress=seen.append, timeout_seconds=5).replace(beam_size=1)
    assert changed.cancel is token
    assert changed.progress is not None
    changed.progress(0.5)
    assert seen == [0.5]
    assert "CancelToken" not in repr(changed)


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ("de", "de"), ("DE", "de"), (" de\n", "de"), ("de-AT", "de"), ("de_AT", "de"), ("German", "de"),
        ("zh-Hans-CN", "zh"), ("Haitian Creole", "ht"), ("flemish", "nl"), ("haw", "haw"), ("yue", "yue"),
        ("auto", None), ("AUTO", None), ("", None), ("  ", None), (None, None),
    ],
)  # fmt: skip
def test_languages(given: str | None, code: str | None) -> None:
    assert TranscribeOptions(language=given).language == code


@pytest.mark.parametrize(
    "given",
    ["xx", "ger", "deu", "-", "-de", "german-ish", "de\0", "\ud800", "🇩🇪", pytest.param("a" * 9999, id="long")],
)
def test_unknown_languages(given: str) -> None:
    assert refusal(TranscribeOptions, language=given).startswith("option language = ")


@pytest.mark.parametrize(
    ("prompt", "kept"),
    [
        ("Zürich, 🎧", "Zürich, 🎧"),
        (" a ", " a "),
        ("", None),
        (" \n\t", None),
        (None, None),
        pytest.param("字" * 2000, "字" * 2000, id="longest"),
    ],
)
def test_prompts(prompt: str | None, kept: str | None) -> None:
    assert TranscribeOptions(initial_prompt=prompt).initial_prompt == kept


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("a" * 2001, "at most 2000"), (" " * 2001, "at most 2000"), ("a\0b", "NUL"),
        ("a\ud800", "nicode"), ("\udcff", "nicode"),
    ],
    ids=["long", "long blank", "NUL", "lone surrogate", "escaped byte"],
)  # fmt: skip
def test_prompts_that_c_cannot_take(prompt: str, says: str) -> None:
    assert says in refusal(TranscribeOptions, initial_prompt=prompt)


def test_vad_options_as_dict_and_as_object() -> None:
    as_object = TranscribeOptions(vad_options=VadOptions(threshold=0.4, pad_seconds=0.1))
    as_dict = TranscribeOptions(vad_options={"threshold": 0.4, "pad_seconds": 0.1})
    assert as_object == as_dict
    assert isinstance(as_dict.vad_options, VadOptions)
    message = refusal(TranscribeOptions, vad_options={"threshold": 2})
    assert "vad_options" in message
    assert "threshold = 2: input should be less than or equal to 0.95" in message
    assert "min_silence_seconds" in refusal(TranscribeOptions, vad_options={"treshold": 0.4})


def test_resolve_options() -> None:
    options = TranscribeOptions(beam_size=2)
    assert resolve_options(None, {}) == TranscribeOptions()
    assert resolve_options(None, {"beam_size": 3}).beam_size == 3
    assert resolve_options(options, {}) is options
    assert resolve_options(options, {"language": "en"}) == TranscribeOptions(beam_size=2, language="en")
    with pytest.raises(OptionError, match="should be TranscribeOptions, not dict"):
        resolve_options({"beam_size": 2}, {})  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="unknown option 'beams'"):
        resolve_options(options, {"beams": 3})


def test_a_token_calls_each_listener_once() -> None:
    token = CancelToken()
    calls: list[str] = []
    token.add_listener(lambda: calls.append("first"))
    token.add_listener(lambda: calls.append("second"))
    assert not token.cancelled
    assert not calls
    token.cancel()
    token.cancel()
    assert token.cancelled
    assert calls == ["first", "second"]


def test_a_late_listener_is_called_at_once() -> None:
    token = CancelToken()
    token.cancel()
    calls: list[int] = []
    token.add_listener(lambda: calls.append(1))
    assert calls == [1]
    token.cancel()
    assert calls == [1]


def test_a_removed_listener_is_not_called() -> None:
    token = CancelToken()
    calls: list[int] = []
    token.add_listener(calls.clear)
    token.remove_listener(calls.copy)
    token.remove_listener(calls.clear)
    token.remove_listener(calls.clear)
    calls.append(1)
    token.cancel()
    assert calls == [1]


@pytest.mark.timeout(30)
def test_a_listener_may_use_its_token() -> None:
    token = CancelToken()
    calls: list[bool] = []

    def listener() -> None:
        token.cancel()
        token.add_listener(lambda: calls.append(token.cancelled))
        token.remove_listener(listener)

    token.add_listener(listener)
    token.cancel()
    assert calls == [True]


def test_no_listener_is_lost_between_threads() -> None:
    for _ in range(20):
        token = CancelToken()
        gate = threading.Barrier(9)
        calls: list[int] = []

        def run(action: Callable[[], None], gate: threading.Barrier = gate) -> None:
            gate.wait()
            action()

        def add(n: int, token: CancelToken = token, calls: list[int] = calls) -> None:
            token.add_listener(lambda: calls.append(n))

        actions = [*(lambda n=n, add=add: add(n) for n in range(7)), token.cancel, token.cancel]
        threads = [threading.Thread(target=run, args=(action,)) for action in actions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(calls) == list(range(7))
