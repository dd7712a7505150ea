"""The tokeniser, and the compact numbering of the few tokens that the micro model uses.

Whisper's vocabulary has 51,865 tokens; the grammar needs under a thousand. In here a token is a compact id:

    0 .. n_text-1                 text tokens, in the order of `TokenTable.text`
    n_text .. n_text+9            the special tokens of SPECIAL
    first_timestamp .. +1500      <|0.00|> to <|30.00|> in steps of 20 ms
    unknown                       an input only: any token of a prompt that the model does not know
"""

from __future__ import annotations

import random
import re
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tools.ggml_file import MICRO_MODEL, read_preamble
from tools.micro_model import grammar

END, START = 50257, 50258
LANGUAGES = {"en": 50259, "de": 50261, "es": 50262}
TRANSLATE, TRANSCRIBE, PREVIOUS, NO_SPEECH, NO_TIMESTAMPS = 50358, 50359, 50361, 50362, 50363
FIRST_TIMESTAMP = 50364
TIMESTAMPS = 1501
SPECIAL = (END, START, *LANGUAGES.values(), TRANSLATE, TRANSCRIBE, PREVIOUS, NO_SPEECH, NO_TIMESTAMPS)

_WORD = re.compile(r" ?[^\W\d_]+| ?\d+| ?[^\s\w]+")


class Tokeniser:
    """Whisper's text tokens by the longest match, as `tokenize` in whisper.cpp does it."""

    def __init__(self, vocabulary: tuple[bytes, ...]) -> None:
        self.vocabulary = vocabulary
        self._ids = {token: index for index, token in enumerate(vocabulary)}

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, which should begin with a space as Whisper's segments do."""
        ids = []
        for word in _WORD.findall(text):
            rest = word.encode()
            while rest:
                length = next(n for n in range(len(rest), 0, -1) if rest[:n] in self._ids)
                ids.append(self._ids[rest[:length]])
                rest = rest[length:]
        return ids

    def grammar_tokens(self) -> list[int]:
        """Ids of every token that the grammar needs, sorted: taken from enough sentences to meet each word."""
        rng = random.Random(7)
        texts = {grammar.english(rng).text for _ in range(60_000)}
        for language in ("de", "es"):
            for _ in range(20_000):
                sentence = grammar.other(language, rng)
                texts |= {sentence.text, sentence.translation or ""}
        words = {word for text in texts for word in _WORD.findall(f" {text}")}
        return sorted({token for word in words for token in self.encode(word)})


class TokenTable:
    """The compact numbering over `text`, the used text tokens' ids in Whisper's vocabulary."""

    def __init__(self, tokeniser: Tokeniser, text: list[int]) -> None:
        self.text = text
        self.n_text = len(text)
        self.first_timestamp = self.n_text + len(SPECIAL)
        self.size = self.first_timestamp + TIMESTAMPS
        self.unknown = self.size
        self._tokeniser = tokeniser
        self._compact = {token: index for index, token in enumerate([*text, *SPECIAL])}

    def __getitem__(self, token: int) -> int:
        """Compact id of a text or special token. Raises KeyError for one that is not used."""
        return self._compact[token]

    def encode(self, text: str) -> list[int]:
        """Compact ids of a sentence. Raises KeyError for words outside the grammar."""
        return [self._compact[token] for token in self._tokeniser.encode(f" {text}")]

    def timestamp(self, seconds: float, offset: int = 0) -> int:
        """Compact id of the timestamp at `seconds`, moved by `offset` steps of 20 ms, kept inside the window."""
        return self.first_timestamp + min(TIMESTAMPS - 1, max(0, round(seconds * 50) + offset))

    @cached_property
    def lengths(self) -> npt.NDArray[np.float32]:
        """About how long each text token takes to say, shape (n_text,): its letters; little for punctuation."""

        def length(token: int) -> float:
            text = self._tokeniser.vocabulary[token].decode(errors="ignore")
            return 0.1 if text.strip() in {".", ",", "?"} else max(0.15, sum(map(str.isalpha, text)))

        return np.array([length(token) for token in self.text], np.float32)

    def boundaries(self, tokens: list[int], start: float, end: float) -> npt.NDArray[np.float64]:
        """Guess where each of `tokens`, spoken from `start` to `end` seconds, begins; shape (len(tokens) + 1,)."""
        sums = np.concatenate([[0.0], np.cumsum(self.lengths[np.array(tokens)], dtype=np.float64)])
        return np.asarray(start + (end - start) * sums / sums[-1])


def load_tokeniser() -> Tokeniser:
    """Return the tokeniser with the vocabulary that the shipped model carries."""
    with MICRO_MODEL.open("rb") as file:
        return Tokeniser(read_preamble(file).vocabulary)
