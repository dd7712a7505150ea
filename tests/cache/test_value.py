"""A result as bytes, and back."""

from __future__ import annotations

import pytest

from tests.cache.conftest import make_result
from whisperlib.cache import value
from whisperlib.results import Timings, Transcription

RESULT = make_result("Grüße, 世界 \N{SMILING FACE WITH SUNGLASSES}")


@pytest.mark.parametrize("result", [RESULT, Transcription("", (), None, 0.1)])
def test_a_result_comes_back_as_it_was(result: Transcription) -> None:
    back = value.decode(value.encode(result))
    assert back == result
    assert repr(back) == repr(result)  # types too


def test_the_times_of_one_request_are_not_kept_for_another() -> None:
    timed = Transcription("a", (), None, 1.0, timings=Timings(inference=5), cache="miss")
    back = value.decode(value.encode(timed))
    assert back is not None
    assert (back.timings, back.cache) == (Timings(), "off")


def test_one_changed_byte_is_noticed_wherever_it_is() -> None:
    kept = value.encode(RESULT)
    for place in range(len(kept)):
        damaged = kept[:place] + bytes([kept[place] ^ 1]) + kept[place + 1 :]
        assert value.decode(damaged) is None


@pytest.mark.parametrize("kept", [b"", b"\n", b"{}", value.encode(RESULT)[:-1], value.encode(RESULT) + b" "])
def test_what_is_not_a_result_is_none(kept: bytes) -> None:
    assert value.decode(kept) is None


def test_a_result_of_another_version_is_none() -> None:
    text = b'{"text": "only"}'
    assert value.decode(value._digest(text) + b"\n" + text) is None
