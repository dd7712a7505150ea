from __future__ import annotations

import html
import json
import re
from typing import Any

import pytest

from whisperlib.errors import OptionError
from whisperlib.formats import FORMATS, render, segment_to_dict, to_dict, word_to_dict
from whisperlib.languages import LANGUAGES
from whisperlib.results import Segment, Transcription, Word

HOUR = 3600.0
WORDS = (Word("Guten", 0.1, 0.41234, 0.98765), Word("Tag.", 0.5, 0.9, 0.5))
SEGMENTS = (
    Segment(0, 0.1, 2.3456, "Guten Tag.", (50364, 7, 8), -0.123456, 0.9, 0.0123456, 0.2, 0.987654, WORDS),
    Segment(1, 2.5, 4.0, "Über die Brücke 🌉", (9,)),
)
TRANSCRIPTION = Transcription("Guten Tag. Über die Brücke 🌉", SEGMENTS, "de", 4.00049)
EMPTY = Transcription("", (), None, 0.0)


def of(*segments: tuple[float, float, str]) -> Transcription:
    """Make a transcription of segments given as (start, end, text)."""
    parts = tuple(Segment(i, start, end, text) for i, (start, end, text) in enumerate(segments))
    return Transcription(" ".join(part.text for part in parts), parts, "en", segments[-1][1])


def seconds(clock: str) -> float:
    match = re.fullmatch(r"(\d{2,}):([0-5]\d):([0-5]\d)[,.](\d{3})", clock)
    assert match, clock
    hours, minutes, whole, thousandths = map(int, match.groups())
    return hours * 3600 + minutes * 60 + whole + thousandths / 1000


def parse_srt(text: str) -> list[tuple[float, float, str]]:
    cues = []
    for expected, block in enumerate(text.removesuffix("\n\n").split("\n\n") if text else [], 1):
        number, times, line = block.split("\n")
        assert number == str(expected)
        start, end = times.split(" --> ")
        assert start[-4] == end[-4] == ","
        cues.append((seconds(start), seconds(end), line))
    return cues


def parse_vtt(text: str) -> list[tuple[float, float, str]]:
    header, *blocks = text.removesuffix("\n\n").split("\n\n")
    assert header == "WEBVTT"
    cues = []
    for block in blocks:
        times, line = block.split("\n")
        start, end = times.split(" --> ")
        assert start[-4] == end[-4] == "."
        assert "-->" not in line
        cues.append((seconds(start), seconds(end), html.unescape(line)))
    return cues


PARSERS = {"srt": parse_srt, "vtt": parse_vtt}


def test_formats_are_openais() -> None:
    assert FORMATS == ("json", "verbose_json", "text", "srt", "vtt", "tsv")


@pytest.mark.parametrize("name", ["", "JSON", "xml", "diarized_json", None])
def test_unknown_format_names_the_choices(name: Any) -> None:
    with pytest.raises(OptionError, match="json, verbose_json, text, srt, vtt, tsv"):
        render(TRANSCRIPTION, name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("json", '{"text": ""}'),
        ("text", "\n"),
        ("srt", ""),
        ("vtt", "WEBVTT\n\n"),
        ("tsv", "start\tend\ttext\n"),
    ],
)
def test_nothing_said(name: str, expected: str) -> None:
    assert render(EMPTY, name) == expected


def test_nothing_said_in_full() -> None:
    assert json.loads(render(EMPTY, "verbose_json")) == {
        "task": "transcribe",
        "language": "",
        "duration": 0.0,
        "text": "",
        "segments": [],
        "words": None,
    }


def test_json() -> None:
    assert to_dict(TRANSCRIPTION) == {"text": TRANSCRIPTION.text}
    assert json.loads(render(TRANSCRIPTION, "json")) == {"text": TRANSCRIPTION.text}
    assert "🌉" in render(TRANSCRIPTION, "json")


def test_verbose_json() -> None:
    parsed = json.loads(render(TRANSCRIPTION, "verbose_json"))
    assert parsed == to_dict(TRANSCRIPTION, verbose=True)
    segments, words = parsed.pop("segments"), parsed.pop("words")
    assert parsed == {
        "task": "transcribe",
        "language": "german",
        "duration": 4.0,
        "text": TRANSCRIPTION.text,
    }
    assert segments[0] == {
        "id": 0,
        "seek": 10,
        "start": 0.1,
        "end": 2.346,
        "text": "Guten Tag.",
        "tokens": [50364, 7, 8],
        "temperature": 0.2,
        "avg_logprob": -0.1235,
        "compression_ratio": 0.9877,
        "no_speech_prob": 0.0123,
    }
    assert segments[1]["id"] == 1
    assert segments[1]["temperature"] == 0.0  # not known, but clients want a number
    assert words == [
        {"word": "Guten", "start": 0.1, "end": 0.412, "probability": 0.9877},
        {"word": "Tag.", "start": 0.5, "end": 0.9, "probability": 0.5},
    ]


@pytest.mark.parametrize(
    ("granularities", "segments", "words"),
    [
        (None, True, True),
        ((), False, False),
        (("segment",), True, False),
        (["word"], False, True),
        ({"segment", "word"}, True, True),
    ],
)
def test_granularities(granularities: Any, segments: bool, words: bool) -> None:
    for found in (
        to_dict(TRANSCRIPTION, True, granularities),
        json.loads(render(TRANSCRIPTION, "verbose_json", granularities)),
    ):
        assert (found["segments"] is not None) is segments
        assert (found["words"] is not None) is words


def test_words_that_were_asked_for_are_a_list_even_if_there_are_none() -> None:
    assert to_dict(EMPTY, True, ["word"])["words"] == []


def test_unknown_granularity() -> None:
    with pytest.raises(OptionError, match=r"'char'.*segment, word"):
        to_dict(TRANSCRIPTION, True, ["word", "char"])


@pytest.mark.parametrize(("code", "name"), LANGUAGES.items())
def test_language_is_the_english_name(code: str, name: str) -> None:
    assert to_dict(Transcription("x", (), code, 1.0), True)["language"] == name


def test_a_translation_is_english() -> None:
    found = to_dict(Transcription("x", (), "de", 1.0, task="translate"), True)
    assert (found["task"], found["language"]) == ("translate", "english")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_json_has_no_nan(bad: float) -> None:
    segment = Segment(0, 0.0, 1.0, "x", avg_logprob=bad, compression_ratio=bad, no_speech_prob=bad)
    assert segment_to_dict(segment)["avg_logprob"] is None
    assert word_to_dict(Word("x", 0.0, 1.0, bad))["probability"] is None
    json.loads(render(Transcription("x", (segment,), "en", 1.0), "verbose_json"), parse_constant=pytest.fail)


def test_text() -> None:
    assert render(TRANSCRIPTION, "text") == "Guten Tag. Über die Brücke 🌉\n"


def test_srt() -> None:
    assert render(TRANSCRIPTION, "srt") == (
        "1\n00:00:00,100 --> 00:00:02,346\nGuten Tag.\n\n2\n00:00:02,500 --> 00:00:04,000\nÜber die Brücke 🌉\n\n"
    )


def test_vtt() -> None:
    assert render(TRANSCRIPTION, "vtt") == (
        "WEBVTT\n\n00:00:00.100 --> 00:00:02.346\nGuten Tag.\n\n00:00:02.500 --> 00:00:04.000\nÜber die Brücke 🌉\n\n"
    )


def test_tsv() -> None:
    assert render(TRANSCRIPTION, "tsv") == ("start\tend\ttext\n100\t2346\tGuten Tag.\n2500\t4000\tÜber die Brücke 🌉\n")


@pytest.mark.parametrize(
    ("time", "clock"),
    [
        (0.0, "00:00:00,000"),
        (0.0004, "00:00:00,000"),
        (0.9996, "00:00:01,000"),
        (59.9994, "00:00:59,999"),
        (59.9996, "00:01:00,000"),
        (HOUR - 0.0001, "01:00:00,000"),
        (HOUR, "01:00:00,000"),
        (HOUR + 61.5, "01:01:01,500"),
        (2 * HOUR + 59 * 60 + 59.999, "02:59:59,999"),
        (24 * HOUR, "24:00:00,000"),
        (100 * HOUR - 0.001, "99:59:59,999"),
        (100 * HOUR, "100:00:00,000"),
        (123 * HOUR + 4 * 60 + 5.678, "123:04:05,678"),
        (-0.5, "00:00:00,000"),
    ],
)
def test_clock(time: float, clock: str) -> None:
    transcription = of((time, time + 1, "x"))
    assert render(transcription, "srt").split("\n")[1].split(" --> ")[0] == clock
    assert render(transcription, "vtt").split("\n")[2].split(" --> ")[0] == clock.replace(",", ".")


@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.parametrize(("start", "end"), [(1.0, 1.0), (1.0, 0.5), (1.0, 1.0001), (0.9999, 1.0), (-2.0, -1.0)])
def test_a_cue_ends_after_it_starts(name: str, start: float, end: float) -> None:
    [(shown_start, shown_end, _)] = PARSERS[name](render(of((start, end, "x")), name))
    assert shown_end >= shown_start + 0.0009


@pytest.mark.parametrize("name", PARSERS)
def test_round_trip_over_hours(name: str) -> None:
    expected = [(i * 1234.567, i * 1234.567 + 3.25, f"cue {i}") for i in range(400)]
    found = PARSERS[name](render(of(*expected), name))
    assert [text for *_, text in found] == [text for *_, text in expected]
    for (start, end, _), (expected_start, expected_end, _) in zip(found, expected, strict=True):
        assert start == pytest.approx(expected_start, abs=0.00051)
        assert end == pytest.approx(expected_end, abs=0.00051)


@pytest.mark.parametrize(
    ("text", "srt", "vtt"),
    [
        ("a\nb", "a b", "a b"),
        ("a\r\n\r\nb\n", "a b", "a b"),
        ("a\u2028\u0085b\tc", "a b c", "a b c"),
        ("1\n00:00:01,000 --> 00:00:02,000\nforged", "1 00:00:01,000 -> 00:00:02,000 forged", None),
        ("a --> b ---> c", "a -> b -> c", "a --&gt; b ---&gt; c"),
        ("<v Ann> AT&T &amp; \"quotes\" 'n'", None, "&lt;v Ann&gt; AT&amp;T &amp;amp; \"quotes\" 'n'"),
        ("{\\an8} \\N \\h", "{\\an8} \\N \\h", "{\\an8} \\N \\h"),
        ("42", "42", "42"),
        ("العربية 日本語 👩‍👩‍👧", None, None),
    ],
)
def test_text_of_a_cue(text: str, srt: str | None, vtt: str | None) -> None:
    transcription = of((0, 1, text), (1, 2, "after"))
    shown = render(transcription, "srt")
    assert [cue for *_, cue in parse_srt(shown)] == [srt or text, "after"]
    shown = render(transcription, "vtt")
    assert [cue for *_, cue in parse_vtt(shown)] == [" ".join(text.split()), "after"]
    if vtt:
        assert shown.split("\n")[3] == vtt


@pytest.mark.parametrize("name", PARSERS)
def test_segments_without_text_have_no_cue(name: str) -> None:
    transcription = of((0, 1, ""), (1, 2, "a"), (2, 3, " \n"), (3, 4, "b"))
    assert PARSERS[name](render(transcription, name)) == [(1.0, 2.0, "a"), (3.0, 4.0, "b")]


def test_tsv_keeps_its_columns() -> None:
    rows = render(of((0, 1, "a\tb\nc"), (HOUR, HOUR + 1, "")), "tsv").splitlines()
    assert rows == ["start\tend\ttext", "0\t1000\ta b c", "3600000\t3601000\t"]


@pytest.mark.parametrize("name", FORMATS)
def test_everything_encodes(name: str) -> None:
    assert b"a ? b" in render(of((0, 1, "a \ud83c b")), name).encode()


def test_pysubs2_reads_the_subtitles() -> None:
    pysubs2 = pytest.importorskip("pysubs2")
    expected = [(100, 2346, "Guten Tag."), (2500, 4000, "Über die Brücke 🌉")]
    for name in PARSERS:
        events = pysubs2.SSAFile.from_string(render(TRANSCRIPTION, name), format_=name)
        assert [(event.start, event.end, event.plaintext) for event in events] == expected
