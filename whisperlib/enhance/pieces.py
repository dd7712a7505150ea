"""A long transcript in pieces that fit into a small language model's context."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

# Ollama gives a model 4096 tokens if nobody says more, and drops what is above without a word. With a byte or two a
# token where a script fares worst, this much fits together with its correction.
MAX_PIECE_BYTES = 3000

_SENTENCE_END = re.compile(r"[.!?…؟।]+[\"'”’»)\]]*\s+|[。！？]+[」』”]*\s*|\n\s*")
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class Piece:
    """A part of a text without space around it, and the space that follows."""

    text: str
    gap: str = ""


def split(text: str, max_bytes: int = MAX_PIECE_BYTES) -> Iterator[Piece]:
    """Cut a text into pieces of at most `max_bytes` of UTF-8; joined again they are the text without space around it.

    They end where a sentence does; where one is too long, between words; where a word is, anywhere.
    """
    text = text.strip()
    while text:
        end = _end(text, max_bytes)
        piece = text[:end].rstrip()
        yield Piece(piece, text[len(piece) : end])
        text = text[end:]


def _end(text: str, max_bytes: int) -> int:
    window = text[:max_bytes]
    fitting = len(window.encode("utf-8", "replace")[:max_bytes].decode("utf-8", "ignore"))
    if fitting >= len(text):
        return len(text)
    for boundary in (_SENTENCE_END, _SPACE):
        ends = [match.end() for match in boundary.finditer(text, 0, fitting + 1)]  # the space itself need not fit
        ends = [end for end in ends if len(text[:end].rstrip()) <= fitting]
        if ends:
            return _past_space(text, ends[-1])
    return max(fitting, 1)


def _past_space(text: str, end: int) -> int:
    following = _SPACE.match(text, end)
    return following.end() if following else end
