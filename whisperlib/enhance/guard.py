"""Tells a correction from anything else that a language model may answer."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from difflib import Match, SequenceMatcher

from whisperlib.enhance import prompt

MIN_LENGTH_RATIO, MAX_LENGTH_RATIO = 0.6, 1.5  # of the answer's characters to the source's
LENGTH_SLACK = 20  # characters that a short text may grow or shrink beyond that
MIN_OVERLAP = 0.5  # of the words, both of the source's in the answer and of the answer's in the source
MAX_ADDED_WORDS = 4  # in one place: an introduction or an answer has more, a forgotten word fewer
MAX_DROPPED_WORDS = 12  # in one place, unless they repeat what stays: a hesitation has fewer
MAX_STEPS = 2_000_000  # of a comparison, a fraction of a second: one word again and again would take billions

# A word, or one character of the scripts that have no space between words.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+(?:['’][^\W_{_UNSPACED}]+)*")
_OTHER_ENDS = ("content_filter", "tool_calls", "function_call")
_MARKUP = ("```", "**", "<think", "[/INST]", "<|")


def is_too_long(source: str, answer: str) -> bool:
    """Whether an answer has grown beyond any correction."""
    return len(answer) > MAX_LENGTH_RATIO * len(source) + LENGTH_SLACK


def why_refused(source: str, answer: str, finish_reason: str | None, mark: str) -> str | None:
    """Say why `answer` is no correction of `source`; None where it is one.

    `finish_reason` is the API's word for why it ended, `mark` what enclosed the source in the prompt.
    """
    for refused, reason in (
        (finish_reason == "length", "it was cut off at the limit of tokens"),
        (finish_reason in _OTHER_ENDS, "the server's filter or a call of a tool ended it"),
        (not answer.strip(), "it is empty"),
        (is_too_long(source, answer), "it is much longer than the transcript"),
        (_is_too_short(source, answer), "it is much shorter than the transcript"),
        (_echoes(source, answer, mark), "it repeats the prompt or has a layout of its own"),
    ):
        if refused:
            return reason
    return _why_other_words(_words(source), _words(answer))


def _is_too_short(source: str, answer: str) -> bool:
    return len(answer) < MIN_LENGTH_RATIO * len(source) - LENGTH_SLACK


def _echoes(source: str, answer: str, mark: str) -> bool:
    said, told = source.casefold(), answer.casefold()
    own = (mark, "<transcript", "</transcript", *_MARKUP, *(line.casefold() for line in prompt.instructions()))
    if any(one.casefold() in told and one.casefold() not in said for one in own):
        return True
    first, newline, _ = told.strip().partition("\n")
    return bool(newline) and first.rstrip().endswith(":") and first.rstrip(" :") not in said


def _why_other_words(said: Sequence[str], told: Sequence[str]) -> str | None:
    if not said:
        return None if not told else "it has words and the transcript has none"
    shared = (Counter(said) & Counter(told)).total()
    if shared < MIN_OVERLAP * len(said) or shared < MIN_OVERLAP * len(told):
        return "it has other words than the transcript"
    stays = set(told)
    said, told = _without_common_ends(said, told)
    try:
        differences = _Comparison(said, told).get_opcodes()
    except _TooManyStepsError:
        return "it repeats itself too often to be compared with the transcript"
    for kind, i, j, k, m in differences:
        if kind == "equal":
            continue
        if (m - k) - (j - i) > MAX_ADDED_WORDS:
            return "it adds words that nobody said"
        if (j - i) - (m - k) > MAX_DROPPED_WORDS and not set(said[i:j]) <= stays:
            return "it leaves out a part of the transcript"
    return None


def _without_common_ends(said: Sequence[str], told: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Leave out what two texts begin and end with alike."""
    shorter = min(len(said), len(told))
    begin = next((at for at in range(shorter) if said[at] != told[at]), shorter)
    rest = shorter - begin
    end = next((at for at in range(rest) if said[-1 - at] != told[-1 - at]), rest)
    return said[begin : len(said) - end], told[begin : len(told) - end]


class _TooManyStepsError(Exception):
    """A comparison would take longer than it is worth."""


class _Comparison(SequenceMatcher[str]):
    """Raises _TooManyStepsError after MAX_STEPS.

    A step holds a word against one of its like in the other text, and that again for each stretch that they share.
    """

    def __init__(self, said: Sequence[str], told: Sequence[str]) -> None:
        super().__init__(None, said, told, autojunk=False)
        self._said = said
        self._n_like = Counter(told)
        self._n_steps = 0

    def find_longest_match(self, alo: int = 0, ahi: int | None = None, blo: int = 0, bhi: int | None = None) -> Match:
        """Find it as SequenceMatcher does."""
        self._n_steps += sum(1 + self._n_like[word] for word in self._said[alo:ahi])
        if self._n_steps > MAX_STEPS:
            raise _TooManyStepsError
        return super().find_longest_match(alo, ahi, blo, bhi)


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
