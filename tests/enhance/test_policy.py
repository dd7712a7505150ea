"""Which texts are worth a clean-up."""

from __future__ import annotations

import pytest

from whisperlib.enhance import policy


@pytest.mark.parametrize(
    "model", ["micro", "tiny", "base.en", "small", "tiny.en", "distil-small.en", "/models/ggml-base-q5_1.bin"]
)
def test_auto_takes_the_small_ones(model: str) -> None:
    assert policy.why_not("auto", model) is None


@pytest.mark.parametrize("model", ["medium", "medium.en", "large-v3", "large-v3-turbo", "/small/mine.bin", "database"])
def test_auto_leaves_the_others(model: str) -> None:
    assert model in str(policy.why_not("auto", model))


def test_always_and_never() -> None:
    assert policy.why_not("always", "large-v3") is None
    assert policy.why_not("never", "tiny")
