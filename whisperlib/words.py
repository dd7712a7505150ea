"""Makes words and segments out of the engine's tokens."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from whisperlib.binding import RawSegment, RawToken
from whisperlib.results import Segment, TokenLogprob, Word

# Written without spaces: every character is a word (OpenAI's whisper/tokenizer.py, split_to_word_tokens).
UNSPACED_LANGUAGES = frozenset({"zh", "ja", "th", "lo", "my", "yue"})

Span = Callable[[float, float], tuple[float, float]]


def to_segment(raw: RawSegment, *, index: int, language: str, span: Span, with_words: bool) -> Segment:
    """Turn a raw segment into a result; `span` maps its start and end (seconds) to the caller's timeline."""
    start, end = span(raw.start, raw.end)
    text = raw.text.decode("utf-8", "replace").strip()
    n = len(raw.tokens)
    words = tuple(_words(raw, language, span)) if with_words else ()
    return Segment(
        id=index,
        start=start,
        end=end,
        text=text,
        tokens=tuple(token.id for token in raw.tokens),
        avg_logprob=sum(token.logprob for token in raw.tokens) / n if n else 0.0,
        probability=sum(token.probability for token in raw.tokens) / n if n else 0.0,
        no_speech_prob=raw.no_speech_prob,
        temperature=raw.temperature,
        compression_ratio=compression_ratio(text),
        words=words,
        separator="" if language in UNSPACED_LANGUAGES else " ",
        logprobs=tuple(TokenLogprob(token.text, token.logprob) for token in raw.tokens),
    )


def compression_ratio(text: str) -> float:
    """Length of the UTF-8 text over that of its zlib form (OpenAI's whisper/utils.py); 0 for an empty text."""
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0


def _words(raw: RawSegment, language: str, span: Span) -> Iterator[Word]:
    after = raw.start
    for tokens in _group(raw.tokens, language):
        text = _text(tokens)
        if not text:
            continue
        # The engine's token times can step back or leave the segment; words never do.
        first = min(max(tokens[0].start, after), raw.end)
        last = min(max(tokens[-1].end, first), raw.end)
        after = last
        start, end = span(first, last)
        yield Word(text, start, end, sum(token.probability for token in tokens) / len(tokens))


def _group(tokens: Sequence[RawToken], language: str) -> Iterator[list[RawToken]]:
    """Split tokens into words, at spaces or (in unspaced languages) at whole characters."""
    spaced = language not in UNSPACED_LANGUAGES
    word: list[RawToken] = []
    for token in tokens:
        # A token may begin inside a character: with one of UTF-8's continuation bytes.
        starts_word = token.text.startswith(b" ") if spaced else not b"\x80" <= token.text[:1] < b"\xc0"
        if word and starts_word:
            yield word
            word = []
        word.append(token)
    if word:
        yield word


def split(raw: RawSegment, language: str, max_characters: int) -> list[RawSegment]:
    """Split a segment between words into pieces of at most `max_characters`; a longer word stands alone.

    Needs token timestamps. The pieces keep their tokens, and their times follow one another.
    """
    pieces: list[list[RawToken]] = [[]]
    for word in _group(raw.tokens, language):
        if _text(pieces[-1]) and _text(word) and len(_text([*pieces[-1], *word])) > max_characters:
            pieces.append([])
        pieces[-1] += word
    if len(pieces) == 1:
        return [raw]
    result: list[RawSegment] = []
    start = raw.start
    for index, tokens in enumerate(pieces):
        is_last = index == len(pieces) - 1
        end = raw.end if is_last else min(max(tokens[-1].end, start), raw.end)
        text = b"".join(token.text for token in tokens)
        result.append(replace(raw, start=start, end=end, text=text, tokens=tuple(tokens)))
        start = end if is_last else min(max(pieces[index + 1][0].start, end), raw.end)
    return result


def _text(tokens: Sequence[RawToken]) -> str:
    return b"".join(token.text for token in tokens).decode("utf-8", "replace").strip()
