"""Long transcripts in pieces, and whole again."""

from __future__ import annotations

import random

import pytest

from whisperlib.enhance import pieces


def whole(text: str, max_bytes: int) -> list[str]:
    """Cut a text, check what always holds, return the pieces' texts."""
    parts = [*pieces.split(text, max_bytes)]
    assert "".join(part.text + part.gap for part in parts) == text.strip()
    for part in parts:
        assert part.text == part.text.strip() != ""
        assert part.gap.strip() == ""
        assert len(part.text.encode("utf-8", "replace")) <= max_bytes
    return [part.text for part in parts]


@pytest.mark.parametrize(
    ("text", "max_bytes", "parts"),
    [
        ("", 10, []),
        (" One. \n", 10, ["One."]),
        ("One two. Three four! Five?", 16, ["One two.", "Three four!", "Five?"]),
        ("One two. Three four! Five?", 20, ["One two. Three four!", "Five?"]),
        ("He said “no.” Then he left.", 19, ["He said “no.”", "Then he left."]),
        ("one two three four", 9, ["one two", "three", "four"]),
        ("abcdefghij", 4, ["abcd", "efgh", "ij"]),
        ("今天很好。我们走吧。", 18, ["今天很好。", "我们走吧。"]),
        ("3.5 is a number", 100, ["3.5 is a number"]),
    ],
)
def test_a_text_is_cut_where_it_hurts_least(text: str, max_bytes: int, parts: list[str]) -> None:
    assert whole(text, max_bytes) == parts


def test_any_text_is_whole_again() -> None:
    generator = random.Random(7)
    alphabet = "ab .!?。天é𝄞\n\u00a0\ud800"
    for _ in range(500):
        text = "".join(generator.choices(alphabet, k=generator.randint(0, 80)))
        whole(text, generator.randint(4, 30))
