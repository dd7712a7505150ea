r"""Transcription → text in the formats of OpenAI's API and of its `whisper` command.

Subtitles are written here and not by pysubs2, which stops the clock at 99:59:59, takes `{…}`, `\N` and `\h`
in the text for styling, and escapes neither `-->` nor what WebVTT reserves.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

from whisperlib.errors import OptionError
from whisperlib.languages import LANGUAGES
from whisperlib.results import Segment, Transcription, Word

MEDIA_TYPES = {
    "json": "application/json",
    "verbose_json": "application/json",
    "text": "text/plain",
    "srt": "application/x-subrip",
    "vtt": "text/vtt",
    "tsv": "text/tab-separated-values",
}
FORMATS = tuple(MEDIA_TYPES)
GRANULARITIES = ("segment", "word")


def render(transcription: Transcription, response_format: str, granularities: Collection[str] | None = None) -> str:
    """Write a transcription in one of FORMATS, as text that encodes to UTF-8.

    `json` and `verbose_json` are what `to_dict` gives, the latter with `granularities`. `text` is the text
    and a newline. `srt` and `vtt` have a cue for every segment with text; it ends at least 1 ms after it
    starts. `tsv` has a header, then start and end in milliseconds and the text of every segment.

    Raises OptionError for another format or granularity.
    """
    if response_format not in FORMATS:
        raise OptionError(f"unknown format {response_format!r}: the formats are {', '.join(FORMATS)}")
    if response_format in _WRITERS:
        text = _WRITERS[response_format](transcription)
    else:
        fields = to_dict(transcription, response_format == "verbose_json", granularities)
        text = json.dumps(fields, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode()  # a lone surrogate has no UTF-8


def to_dict(
    transcription: Transcription, verbose: bool = False, granularities: Collection[str] | None = None
) -> dict[str, Any]:
    """Return what OpenAI's API answers, ready for JSON: `text`, and if `verbose` all that is known.

    `language` is the English name in lower case (`"german"`), as OpenAI answers and its clients expect: that
    of the text, so always `"english"` for a translation, and `""` where it is not known. `duration` is in
    seconds. `granularities` of "segment" and "word" choose which of `segments` and `words` are filled; the
    other is None. If not given, there are segments, and words if the transcription has any.

    Raises OptionError for another granularity.
    """
    if not verbose:
        return {"text": transcription.text}
    if granularities is None:
        granularities = GRANULARITIES if transcription.words else ("segment",)
    if unknown := set(granularities).difference(GRANULARITIES):
        raise OptionError(f"unknown granularity {min(unknown)!r}: the granularities are {', '.join(GRANULARITIES)}")
    code = "en" if transcription.task == "translate" else transcription.language or ""
    return {
        "task": transcription.task,
        "language": LANGUAGES.get(code, code),
        "duration": _rounded(transcription.duration, 3),
        "text": transcription.text,
        "segments": [*map(segment_to_dict, transcription.segments)] if "segment" in granularities else None,
        "words": [*map(word_to_dict, transcription.words)] if "word" in granularities else None,
    }


def segment_to_dict(segment: Segment) -> dict[str, Any]:
    """Return a segment of `verbose_json`. `start` and `end` are seconds.

    `seek`, in OpenAI's code the start of the 30 s window in frames of 10 ms, is that of the segment itself.
    A `temperature` that is not known is 0.0, since typed clients take no null there.
    """
    return {
        "id": segment.id,
        "seek": round(segment.start * 100),
        "start": _rounded(segment.start, 3),
        "end": _rounded(segment.end, 3),
        "text": segment.text,
        "tokens": list(segment.tokens),
        "temperature": _rounded(segment.temperature or 0.0, 3),
        "avg_logprob": _rounded(segment.avg_logprob, 4),
        "compression_ratio": _rounded(segment.compression_ratio, 4),
        "no_speech_prob": _rounded(segment.no_speech_prob, 4),
    }


def word_to_dict(word: Word) -> dict[str, Any]:
    """Return a word of `verbose_json`, with its `probability` (0 to 1) beside OpenAI's fields."""
    return {
        "word": word.text,
        "start": _rounded(word.start, 3),
        "end": _rounded(word.end, 3),
        "probability": _rounded(word.probability, 4),
    }


def logprobs_to_list(segment: Segment) -> list[dict[str, Any]]:
    """Return the tokens of a segment as OpenAI's `logprobs`: `token`, `logprob`, and `bytes`, numbers from 0 to 255.

    Of a token that is a part of a character, `token` has U+FFFD; the bytes of all tokens, joined, are the text with the
    space that the model begins it with.
    """
    return [
        {
            "token": token.data.decode("utf-8", "replace"),
            "logprob": _rounded(token.logprob, 4),
            "bytes": list(token.data),
        }
        for token in segment.logprobs
    ]


def _rounded(value: float, digits: int) -> float | None:
    return round(value, digits) if math.isfinite(value) else None  # JSON has no NaN


def _text(transcription: Transcription) -> str:
    return f"{transcription.text}\n"


def _srt(transcription: Transcription) -> str:
    # SubRip has no escape for an arrow, and readers take a line with one for a cue's times.
    return "".join(
        f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{re.sub('-{2,}>', '->', text)}\n\n"
        for number, (start, end, text) in enumerate(_cues(transcription), 1)
    )


def _vtt(transcription: Transcription) -> str:
    return "WEBVTT\n\n" + "".join(
        f"{_clock(start, '.')} --> {_clock(end, '.')}\n{html.escape(text, quote=False)}\n\n"
        for start, end, text in _cues(transcription)
    )


def _tsv(transcription: Transcription) -> str:
    rows = (
        f"{_milliseconds(segment.start)}\t{_milliseconds(segment.end)}\t{_one_line(segment.text)}\n"
        for segment in transcription.segments
    )
    return "start\tend\ttext\n" + "".join(rows)


def _cues(transcription: Transcription) -> Iterator[tuple[int, int, str]]:
    """Yield start and end in milliseconds and the text of every segment that has some."""
    for segment in transcription.segments:
        if text := _one_line(segment.text):
            start = _milliseconds(segment.start)
            yield start, max(_milliseconds(segment.end), start + 1), text


def _one_line(text: str) -> str:
    return " ".join(text.split())  # an empty line would end the cue, a tab the column


def _milliseconds(seconds: float) -> int:
    return max(round(seconds * 1000), 0)


def _clock(milliseconds: int, mark: str) -> str:
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{mark}{milliseconds:03}"


_WRITERS: dict[str, Callable[[Transcription], str]] = {"text": _text, "srt": _srt, "vtt": _vtt, "tsv": _tsv}
