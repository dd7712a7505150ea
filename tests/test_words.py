"""Words and segments from tokens that are built here by hand."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import replace

import pytest

from whisperlib.binding import RawSegment, RawToken
from whisperlib.results import Segment
from whisperlib.words import compression_ratio, split, to_segment


def token(text: bytes | str, start: float = 0.0, end: float = 0.0, probability: float = 0.5) -> RawToken:
    data = text if isinstance(text, bytes) else text.encode()
    return RawToken(sum(data), data, probability, -0.25, start, end)


def segment(tokens: Sequence[RawToken | bytes | str], start: float = 0.0, end: float = 10.0) -> RawSegment:
    """Texts stand for tokens of 0.5 s, one after the other."""
    made = tuple(
        part if isinstance(part, RawToken) else token(part, start + i / 2, start + (i + 1) / 2)
        for i, part in enumerate(tokens)
    )
    return RawSegment(start, end, b"".join(part.text for part in made), 0.125, 0.2, made)


def result(raw: RawSegment, language: str = "en", *, with_words: bool = True, shift: float = 0.0) -> Segment:
    return to_segment(raw, index=3, language=language, span=lambda a, b: (a + shift, b + shift), with_words=with_words)


def words(raw: RawSegment, language: str = "en") -> list[str]:
    return [word.text for word in result(raw, language).words]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([" Call", " the", " doctor"], ["Call", "the", "doctor"]),
        ([" un", "believ", "able", " news"], ["unbelievable", "news"]),
        (["Call", " me"], ["Call", "me"]),  # the first without its space
        ([" Yes", ",", " no", "...", "!"], ["Yes,", "no...!"]),  # punctuation stays with the word before
        ([" \"", "Hi", "\"", " (", "you", ")"], ["\"Hi\"", "(you)"]),
        ([" ", " a", " "], ["a"]),
        ([" three thousand"], ["three thousand"]),
        ([], []),
        (["", " a", ""], ["a"]),
    ],
)  # fmt: skip
def test_words_of_spaced_languages(tokens: list[str], expected: list[str]) -> None:
    assert words(segment(tokens)) == expected


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        (" für Zürich", "de", ["für", "Zürich"]),
        (" ok 🎧🇩🇪 ja", "de", ["ok", "🎧🇩🇪", "ja"]),
        ("你好。世界", "zh", ["你", "好", "。", "世", "界"]),
        ("東京🗼", "ja", ["東", "京", "🗼"]),
        ("ไทย", "th", ["ไ", "ท", "ย"]),
        (" 안녕 세계", "ko", ["안녕", "세계"]),  # written with spaces
    ],
)
def test_characters_split_over_tokens(text: str, language: str, expected: list[str]) -> None:
    """Byte-level tokens: every byte alone, and two other ways of cutting."""
    data = text.encode()
    assert words(segment([data[i : i + 1] for i in range(len(data))]), language) == expected
    for size in (2, 5):
        pieces = [data[i : i + size] for i in range(0, len(data), size)]
        assert "".join(words(segment(pieces), language)).replace(" ", "") == text.replace(" ", "")
        assert "�" not in "".join(words(segment(pieces), language))


@pytest.mark.parametrize("language", ["zh", "ja", "th", "lo", "my", "yue"])
def test_unspaced_languages_have_a_word_per_token_of_whole_characters(language: str) -> None:
    assert words(segment(["你好", b"\xe4\xb8", b"\x96", "界"]), language) == ["你好", "世", "界"]
    assert words(segment(["你好", "世"]), "en") == ["你好世"]


@pytest.mark.parametrize("bad", [b"\xff", b"\xe4\xbd", b"\x80", b"\xf0\x9f\x8e", b"\xc0\x80", b"\xed\xa0\x80"])
def test_invalid_bytes_are_replaced_and_spoil_one_word_only(bad: bytes) -> None:
    raw = segment([" one", bad, " two", " three"])
    assert result(raw).text == (b"one" + bad + b" two three").decode("utf-8", "replace")
    assert words(raw) == [(b"one" + bad).decode("utf-8", "replace"), "two", "three"]
    chinese = words(segment(["你", bad, "好", "世"]), "zh")
    assert "".join(chinese) == (b"\xe4\xbd\xa0" + bad).decode("utf-8", "replace") + "好世"
    assert chinese[-2:] == ["好", "世"]


def test_a_word_has_the_times_and_the_mean_probability_of_its_tokens() -> None:
    raw = segment([token(" un", 1.0, 1.5, 0.9), token("real", 1.5, 2.0, 0.6), token(" it", 2.5, 3.0, 0.25)])
    first, second = result(raw, shift=100.0).words
    assert (first.text, first.start, first.end) == ("unreal", 101.0, 102.0)
    assert first.probability == pytest.approx(0.75)
    assert (second.text, second.start, second.end, second.probability) == ("it", 102.5, 103.0, 0.25)


def test_times_that_step_back_or_leave_the_segment_are_held() -> None:
    raw = segment(
        [
            token(" a", -1.0, 3.0),
            token(" b", 2.5, 2.0),  # before the end of `a`, and ending before it starts
            token(" c", 99.0, 98.0),
            token(" d", 4.0, 5.0),
        ],
        start=1.0,
        end=6.0,
    )
    assert [(w.text, w.start, w.end) for w in result(raw).words] == [
        ("a", 1.0, 3.0), ("b", 3.0, 3.0), ("c", 6.0, 6.0), ("d", 6.0, 6.0)
    ]  # fmt: skip


def random_segment(rng: random.Random) -> RawSegment:
    alphabet: list[bytes | str] = [
        " a",
        " bc",
        "d",
        "ü",
        " 🎧",
        "你",
        "。",
        " ",
        "",
        ".",
        b"\xff",
        b"\xe4",
        b"\xbd\xa0",
        " longerword",
    ]
    tokens = [
        token(rng.choice(alphabet), rng.uniform(-2, 9), rng.uniform(-2, 9), rng.random())
        for _ in range(rng.randrange(25))
    ]
    return segment(tokens, start=rng.uniform(0, 2), end=rng.uniform(2, 7))


def test_words_are_in_order_and_inside_whatever_the_engine_says() -> None:
    rng = random.Random(1)
    for _ in range(500):
        raw = random_segment(rng)
        language = rng.choice(["en", "zh"])
        made = result(raw, language)
        times = [time for word in made.words for time in (word.start, word.end)]
        assert times == sorted(times)
        assert all(raw.start <= time <= raw.end for time in times)
        assert all(word.text == word.text.strip() != "" for word in made.words)
        if b"\xe4" not in raw.text:  # else a token of its own can be cut off from the rest of its character
            joined = "".join(word.text for word in made.words)
            assert joined.replace(" ", "") == made.text.replace(" ", "")


def test_to_segment() -> None:
    raw = segment([token(" Hi", probability=0.5), token(" you", probability=1.0)], start=1.0, end=2.0)
    made = result(raw, with_words=False, shift=10.0)
    assert (made.id, made.start, made.end, made.text) == (3, 11.0, 12.0, "Hi you")
    assert made.tokens == tuple(part.id for part in raw.tokens)
    assert (made.avg_logprob, made.probability) == (-0.25, 0.75)
    assert (made.no_speech_prob, made.temperature, made.words) == (0.125, 0.2, ())
    assert made.compression_ratio == compression_ratio("Hi you")
    assert result(segment([token(" Hi", probability=0.5)])).avg_logprob == -0.25
    empty = result(segment([]))
    assert (empty.text, empty.tokens, empty.words) == ("", (), ())
    assert (empty.avg_logprob, empty.probability, empty.compression_ratio) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("text", ["a", "Zürich 🎧", "ha " * 100, "你" * 50])
def test_compression_ratio(text: str) -> None:
    assert compression_ratio(text) == len(text.encode()) / len(zlib.compress(text.encode()))


def test_compression_ratio_of_nothing_and_of_repetition() -> None:
    assert compression_ratio("") == 0.0
    assert compression_ratio("again and " * 50) > 10
    assert compression_ratio("Call the doctor on Thursday.") < 2.4


def text_of(raw: RawSegment) -> str:
    return raw.text.decode("utf-8", "replace").strip()


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (100, ["one two three four"]),
        (18, ["one two three four"]),
        (17, ["one two three", "four"]),
        (13, ["one two three", "four"]),
        (12, ["one two", "three four"]),
        (7, ["one two", "three", "four"]),
        (1, ["one", "two", "three", "four"]),
    ],
)
def test_split_between_words(limit: int, expected: list[str]) -> None:
    raw = segment([" one", " two", " th", "ree", " four"])
    assert [text_of(piece) for piece in split(raw, "en", limit)] == expected


def test_split_counts_characters_and_cuts_none() -> None:
    data = "你好世界".encode()
    raw = segment([data[i : i + 1] for i in range(len(data))])
    assert [text_of(piece) for piece in split(raw, "zh", 1)] == ["你", "好", "世", "界"]
    assert [text_of(piece) for piece in split(raw, "zh", 3)] == ["你好世", "界"]
    assert split(raw, "en", 1) == [raw]  # a single word there


def test_a_piece_takes_the_times_of_its_tokens() -> None:
    raw = segment([token(" one", 1.25, 2.0), token(" two", 2.5, 3.0), token(" three", 4.0, 5.0)], start=1.0, end=6.0)
    assert [(piece.start, piece.end) for piece in split(raw, "en", 7)] == [(1.0, 3.0), (4.0, 6.0)]
    pieces = split(raw, "en", 3)
    assert [(piece.start, piece.end) for piece in pieces] == [(1.0, 2.0), (2.5, 3.0), (4.0, 6.0)]
    assert [piece.tokens for piece in pieces] == [(part,) for part in raw.tokens]
    assert {(piece.no_speech_prob, piece.temperature) for piece in pieces} == {(0.125, 0.2)}


def test_a_space_of_its_own_makes_no_empty_piece() -> None:
    assert [text_of(piece) for piece in split(segment([" ", " longer"]), "en", 3)] == ["longer"]
    assert [text_of(piece) for piece in split(segment([" ", "你好", "世"]), "zh", 1)] == ["你好", "世"]
    assert [text_of(piece) for piece in split(segment([" a", " ", " bcd", " "]), "en", 3)] == ["a", "bcd"]


def test_nothing_to_split() -> None:
    for raw in (segment([]), segment([" word"]), replace(segment([]), text=b"text without tokens")):
        assert split(raw, "en", 1) == [raw]


def test_splitting_loses_nothing() -> None:
    rng = random.Random(7)
    pieces_seen = 0
    for _ in range(500):
        raw, language, limit = random_segment(rng), rng.choice(["en", "ja"]), rng.randrange(1, 15)
        pieces = split(raw, language, limit)
        pieces_seen += len(pieces)
        assert b"".join(piece.text for piece in pieces) == raw.text
        assert tuple(part for piece in pieces for part in piece.tokens) == raw.tokens
        assert all(piece.text == b"".join(part.text for part in piece.tokens) for piece in pieces)
        assert (pieces[0].start, pieces[-1].end) == (raw.start, raw.end)
        times = [time for piece in pieces for time in (piece.start, piece.end)]
        assert times == sorted(times)
        for piece in pieces:
            assert len(text_of(piece)) <= limit or len(result(piece, language).words) == 1
            assert len(pieces) == 1 or text_of(piece)
    assert pieces_seen > 1000
