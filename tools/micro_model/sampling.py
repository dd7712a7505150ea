"""Training windows, composed anew for every step: clips laid out in time, and what to write for them.

The windows imitate what whisper.cpp hands to a model: 30 s at a time, each begun where the timestamps of the
one before said, with the text before it as a prompt. As 30 s are costly, about half of the steps use short
windows without padding instead, put at a random place of the encoder's positions.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tools.micro_model import tokens as whisper
from tools.micro_model.augment import Augmenter
from tools.micro_model.clips import RATE, Clip, Samples
from tools.micro_model.grammar import ONES
from tools.micro_model.human_digits import Digits, spoken_string
from tools.micro_model.tokens import TokenTable

Ints = npt.NDArray[np.int64]

FULL = 30.0
SHORT = (3.2, 4.0, 5.0, 6.4, 8.0, 10.0, 12.0)
LONGEST_PROMPT = 223  # whisper.cpp hands over at most n_text_ctx / 2 - 1 tokens
IGNORED = -100
# A timestamp may be off by 20 or 40 ms: its target is spread over the neighbours.
BLUR = ((-2, 0.03), (-1, 0.17), (0, 0.6), (1, 0.17), (2, 0.03))


@dataclass(frozen=True)
class Mixture:
    """Shares of what the windows hold."""

    full: float = 0.44  # steps with windows of 30 s
    other: float = 0.24  # windows in German or Spanish
    human: float = 0.12  # windows of human digits, where there are any
    digits: float = 0.17  # English clips that are strings of digits
    silent: float = 0.11  # windows without speech


@dataclass(frozen=True)
class Utterance:
    """A clip with its text as compact token ids. `samples`: float32, shape (n,)."""

    samples: Samples
    tokens: list[int]
    language: str
    speaker: str
    translation: list[int] | None = None


@dataclass(frozen=True)
class Batch:
    """One step's windows, as arrays. Rows count the decoder's inputs: item * inputs.shape[1] + position."""

    mels: Samples  # (batch, mels, frames)
    offsets: Ints  # (batch,): encoder position of the first frame
    inputs: Ints  # (batch, longest)
    target_rows: Ints  # (targets,): where a token is predicted,
    target_ids: Ints  # (targets,): which,
    target_weights: Samples  # (targets,): and its share; the shares of a row add up to 1
    spans: Ints  # (spans, 3): row, first and last + 1 encoder frame of the token predicted there
    words: Ints  # all items' text tokens, one after the other, for CTC
    word_counts: Ints  # (batch,)
    word_frames: Ints  # (batch,): encoder frames before the cut
    frame_words: Ints  # (batch, encoder frames): the token spoken there, n_text for none, IGNORED


class ClipBank:
    """All clips, drawn by kind ("english", "other", "human") and if wanted by speaker."""

    def __init__(self, clips: list[Clip], digits: Digits, table: TokenTable, digit_share: float) -> None:
        self._table = table
        self._digits = digits
        self._digit_share = digit_share
        self._kinds: dict[str, list[Clip]] = {}
        self._speakers: dict[tuple[str, str], list[Clip]] = {}
        self._strings: dict[str | None, list[Clip]] = {None: []}
        digit_names = set(ONES[:10])
        for clip in clips:
            kind = "english" if clip.language == "en" else "other"
            self._kinds.setdefault(kind, []).append(clip)
            self._speakers.setdefault((clip.language, clip.speaker), []).append(clip)
            spoken = clip.text.lower().strip(".").split()
            if clip.language == "en" and sum(word in digit_names for word in spoken) >= 3:
                self._strings[None].append(clip)
                self._strings.setdefault(clip.speaker, []).append(clip)

    def kind(self, mixture: Mixture, rng: random.Random) -> str:
        chosen = rng.random()
        if self._digits and chosen < mixture.human:
            return "human"
        if "other" in self._kinds and chosen < mixture.human + mixture.other:
            return "other"
        return "english"

    def draw(self, kind: str, rng: random.Random, like: Utterance | None = None) -> Utterance:
        """Any utterance of `kind`, or one by the same speaker in the same language as `like`."""
        if kind == "human":
            speaker = like.speaker if like else rng.choice(sorted(self._digits))
            count = 1 if rng.random() < 0.3 else rng.randint(2, 8)
            digits = [rng.randrange(10) for _ in range(count)]
            samples, text = spoken_string(self._digits[speaker], digits, rng)
            return Utterance(samples, self._table.encode(text), "en", speaker)
        if kind == "english" and self._strings[None] and rng.random() < self._digit_share:
            # In strings of digits the decoder loses its place most easily.
            strings = self._strings.get(like.speaker if like else None, self._strings[None])
            return self._utterance(rng.choice(strings))
        clips = self._speakers[like.language, like.speaker] if like else self._kinds[kind]
        return self._utterance(rng.choice(clips))

    def _utterance(self, clip: Clip) -> Utterance:
        translation = self._table.encode(clip.translation) if clip.translation else None
        return Utterance(clip.floats(), self._table.encode(clip.text), clip.language, clip.speaker, translation)


@dataclass
class _Layout:
    """What is heard in a window: `segments` are (start, end, utterance) in seconds.

    `cut` is where an utterance begins that does not fit, `end` where the recording stops.
    """

    samples: Samples
    end: float
    segments: list[tuple[float, float, Utterance]] = field(default_factory=list)
    cut: float | None = None
    like: Utterance | None = None


@dataclass
class _Transcript:
    """What the decoder is given, and after each input what it is to answer: {token: share}, {} for anything."""

    inputs: list[int] = field(default_factory=list)
    targets: list[dict[int, float]] = field(default_factory=list)
    spans: list[tuple[int, int, int]] = field(default_factory=list)

    def feed(self, *tokens: int) -> None:
        for token in tokens:
            self.inputs.append(token)
            self.targets.append({})

    def expect(self, token: int) -> None:
        self.targets[-1] = {token: 1.0}


@dataclass(frozen=True)
class _Window:
    samples: Samples
    phone: bool
    offset: int
    transcript: _Transcript
    words: list[int]
    word_frames: int
    frame_words: Ints


class Sampler:
    """Endless batches. `seconds` is the audio of a batch; `rng` decides everything but the noise."""

    def __init__(
        self,
        bank: ClipBank,
        table: TokenTable,
        augmenter: Augmenter,
        rng: random.Random,
        *,
        seconds: float,
        mixture: Mixture,
    ) -> None:
        self._bank = bank
        self._table = table
        self._augmenter = augmenter
        self._rng = rng
        self._seconds = seconds
        self._mixture = mixture

    def batch(self, strength: float) -> Batch:
        """Windows of one length; `strength` 0 to 1 is that of the augmentation."""
        rng = self._rng
        if rng.random() < self._mixture.full:
            seconds, packed = FULL, rng.random() < 0.72
            prompts = 0.72 if packed else 0.3
        else:
            seconds = rng.choice(SHORT)
            packed, prompts = rng.random() < (0.5 if seconds > 6 else 0.15), 0.12
        count = max(1, int(self._seconds / seconds))
        windows = [self._window(seconds, packed, prompts, strength) for _ in range(count)]
        return self._collated(windows, strength)

    def _window(self, seconds: float, packed: bool, prompts: float, strength: float) -> _Window:
        rng, table = self._rng, self._table
        kind = self._bank.kind(self._mixture, rng)
        timestamps = rng.random() >= 0.06
        layout = self._layout(seconds, kind, packed, timestamps)
        short = seconds < FULL
        offset = rng.randrange(1500 - round(seconds * 50)) if short and rng.random() < 0.3 else 0
        phone = rng.random() < (0.9 if kind == "human" else 0.22 * strength)
        end = int(layout.end * RATE)
        samples = self._augmenter.recorded(layout.samples, end, bool(layout.segments), phone, strength)

        transcript = _Transcript()
        if rng.random() < prompts:
            self._write_prompt(transcript, kind, layout)
        self._write(transcript, layout, timestamps, offset)

        frames = round(seconds * 50)
        frame_words = np.full(frames, table.n_text, np.int64)
        for start, stop, utterance in layout.segments:
            edges = (table.boundaries(utterance.tokens, start, stop) * 50).astype(int)
            for token, first, last in zip(utterance.tokens, edges, edges[1:], strict=False):
                frame_words[first : max(first + 1, last)] = token
        word_frames = frames if layout.cut is None else int(layout.cut * 50)
        frame_words[word_frames:] = IGNORED
        words = [token for _, _, utterance in layout.segments for token in utterance.tokens]
        return _Window(samples, phone, offset, transcript, words, word_frames, frame_words)

    # ---- what is heard

    def _layout(self, seconds: float, kind: str, packed: bool, timestamps: bool) -> _Layout:
        rng = self._rng
        # The encoder halves the frames, so a window is a whole number of 20 ms.
        layout = _Layout(np.zeros(round(seconds * 50) * 320, np.float32), end=seconds)
        if rng.random() < self._mixture.silent * (0.8 if packed else 1.2):
            layout.end = seconds if rng.random() < 0.5 else rng.uniform(0.3, seconds)
            return layout
        while not layout.segments:
            layout.samples[:] = 0
            self._fill(layout, kind, packed, may_cut=timestamps)
        return layout

    def _fill(self, layout: _Layout, kind: str, packed: bool, may_cut: bool) -> None:
        """Lay utterances into `layout` one after the other; none if not even the first fits."""
        rng, seconds = self._rng, layout.end
        first = self._bank.draw(kind, rng)
        layout.like = first if kind == "human" or rng.random() < 0.65 else None
        position, sound = self._opening(layout, first, kind)
        wanted = 99 if packed else 1 if rng.random() < 0.5 else rng.randint(2, 4)
        utterance = first
        while self._lay(layout, utterance, sound, position, may_cut) and len(layout.segments) < wanted:
            position = layout.segments[-1][1] + self._pause()
            utterance = self._bank.draw(kind, rng, layout.like)
            while utterance.language != first.language:
                utterance = self._bank.draw(kind, rng, layout.like)
            sound = self._sound(utterance)

        if not layout.segments:
            return
        last = layout.segments[-1][1]
        if layout.cut is not None:
            layout.cut = max(last, layout.cut - 0.1)
        elif seconds == FULL and last > 28.5:
            layout.cut = last  # so near the window's end the rest is better left to the next window
        elif rng.random() < 0.8:
            longest = 1.5 if rng.random() < 0.8 else seconds
            layout.end = min(seconds, last + rng.uniform(0, longest))

    def _opening(self, layout: _Layout, utterance: Utterance, kind: str) -> tuple[float, Samples]:
        """Where the first utterance begins, and its sound, of which a little may be lost to the window before."""
        rng, full = self._rng, layout.end == FULL
        opening = not full or rng.random() < 0.4  # of a recording; else a later window of it
        lead = self._lead(opening, full)
        if not opening and rng.random() < 0.15:
            before = self._sound(self._bank.draw(kind, rng, layout.like))
            tail = int(RATE * rng.uniform(0.02, 0.2))
            layout.samples[:tail] += before[-tail:]
            lead += tail / RATE
        sound = self._sound(utterance)
        if lead < 0:
            sound, lead = sound[int(-lead * RATE) :], 0.0
        room = layout.end - len(sound) / RATE
        return (lead if room >= lead else max(0.0, min(room * rng.random(), lead))), sound

    def _lay(self, layout: _Layout, utterance: Utterance, sound: Samples, position: float, may_cut: bool) -> bool:
        """Lay one utterance; returns whether there may be room for another.

        One that does not fit is left out, or cut off by the window's end.
        """
        start = int(position * RATE)
        space = len(layout.samples) - start
        if space <= 640:
            return False
        if len(sound) > space + 480:  # up to 30 ms too long is no cut
            if layout.segments and may_cut and (layout.end == FULL or self._rng.random() < 0.6):
                layout.samples[start:] += sound[:space]
                layout.cut = position
            return False
        layout.samples[start : start + len(sound)] += sound[:space]
        layout.segments.append((position, min(layout.end, position + len(sound) / RATE), utterance))
        return True

    def _sound(self, utterance: Utterance) -> Samples:
        return self._augmenter.speed(utterance.samples) * np.float32(self._rng.uniform(0.35, 1))

    def _lead(self, opening: bool, full: bool) -> float:
        """Seconds before the first utterance.

        A later window begins where whisper.cpp's seek puts it: just before an onset, or a little after it.
        """
        rng = self._rng
        chosen = rng.random()
        if opening:
            spans = [(0.3, (0, 0.15)), (0.85, (0.1, 1)), (1, (1, 10 if full else 3))]
        else:
            spans = [(0.08, (-0.05, 0)), (0.75, (0, 0.3)), (0.9, (0.2, 1)), (1, (1, 6))]
        return rng.uniform(*next(span for share, span in spans if chosen <= share))

    def _pause(self) -> float:
        spans = [(0.15, 0.6), (0.6, 1.6), (1.6, 4.5)]
        return self._rng.uniform(*self._rng.choices(spans, [45, 37, 18])[0])

    # ---- what is written

    def _write(self, transcript: _Transcript, layout: _Layout, timestamps: bool, offset: int) -> None:
        rng, table = self._rng, self._table
        language = layout.segments[0][2].language if layout.segments else "en"
        translate = rng.random() < 0.06 or (language != "en" and rng.random() < 0.1)
        language_token = table[whisper.LANGUAGES[language]]
        transcript.feed(table[whisper.START])
        transcript.expect(language_token)
        transcript.feed(table.unknown if language == "en" and rng.random() < 0.03 else language_token)
        transcript.feed(table[whisper.TRANSLATE if translate else whisper.TRANSCRIBE])
        if not timestamps:
            transcript.feed(table[whisper.NO_TIMESTAMPS])

        if not layout.segments:
            self._write_silence(transcript, timestamps, offset)
        for index, (start, end, utterance) in enumerate(layout.segments):
            if timestamps:
                # whisper.cpp allows no first timestamp above 1.0 s.
                latest = 1.0 if index == 0 and offset == 0 else FULL
                self._write_timestamp(transcript, start, offset, latest)
            translated = translate and utterance.translation is not None
            text = utterance.translation if translated and utterance.translation else utterance.tokens
            if not translated:
                edges = (table.boundaries(text, start, end) * 50).astype(int)
                row = len(transcript.inputs) - 1
                for place, (first, last) in enumerate(pairwise(edges)):
                    transcript.spans.append((row + place, first - 12, last + 13))
            for token in text:
                transcript.expect(token)
                transcript.feed(token)
            if timestamps:
                self._expect_timestamp(transcript, end, offset)
                transcript.feed(table.timestamp(end, offset))
        if layout.segments and layout.cut is not None and timestamps:
            # Two timestamps at the end: whisper.cpp begins the next window at the second. After one alone it
            # skips what is left of this window.
            self._expect_timestamp(transcript, layout.cut, offset)
            transcript.feed(table.timestamp(layout.cut, offset))
        transcript.expect(table[whisper.END])

    def _write_silence(self, transcript: _Transcript, timestamps: bool, offset: int) -> None:
        """No speech: whisper.cpp reads the probability of <|nospeech|> after the last token of the prompt."""
        rng, table = self._rng, self._table
        no_speech = {table[whisper.NO_SPEECH]: 0.75}
        if timestamps:
            start = table.timestamp(0, offset)
            transcript.targets[-1] = {**no_speech, start: 0.25}
            transcript.feed(start)
        else:
            doubt = dict.fromkeys((rng.randrange(table.n_text) for _ in range(40)), 0.1 / 40)
            transcript.targets[-1] = {**no_speech, table[whisper.END]: 0.15, **doubt}
            transcript.feed(rng.randrange(table.n_text))

    def _expect_timestamp(self, transcript: _Transcript, seconds: float, offset: int) -> None:
        table = self._table
        exact = table.timestamp(seconds, offset)
        target: dict[int, float] = {}
        for shift, share in BLUR:
            token = min(table.size - 1, max(table.first_timestamp, exact + shift))
            target[token] = target.get(token, 0) + share
        transcript.targets[-1] = target

    def _write_timestamp(self, transcript: _Transcript, start: float, offset: int, latest: float) -> None:
        """Begin a segment: expect its timestamp, and feed it, or another one that whisper.cpp might feed."""
        rng, table = self._rng, self._table
        self._expect_timestamp(transcript, start, offset)
        given = table.timestamp(start, offset)
        if rng.random() < 0.1:
            given = min(table.size - 1, max(table.first_timestamp, given + rng.randint(-3, 3)))
        if given > table.timestamp(latest) and rng.random() < 0.5:
            given = table.timestamp(latest)
        transcript.feed(given)

    def _write_prompt(self, transcript: _Transcript, kind: str, layout: _Layout) -> None:
        """Text before this window, as whisper.cpp hands it over: mostly the tokens of one to three windows.

        Some is plain text, as a user's prompt is; some unrelated, cut or spoilt: it must help, never bind.
        """
        rng, table = self._rng, self._table
        like = layout.like
        chosen = rng.random()
        prompt: list[int] = []
        if chosen < 0.12:
            for _ in range(rng.randint(1, 3)):
                prompt += self._bank.draw(kind, rng, like).tokens
        else:
            if chosen < 0.24:
                kind, like = self._bank.kind(Mixture(other=0.5, human=0), rng), None
            for _ in range(rng.randint(1, 3)):
                prompt += self._earlier_window(kind, like, [u for _, _, u in layout.segments])
            chosen = rng.random()
            if chosen < 0.25:
                prompt = prompt[-rng.randint(1, LONGEST_PROMPT) :]
            elif chosen < 0.32:
                prompt = prompt[: rng.randint(1, len(prompt))]
            if rng.random() < 0.15:
                spoilt = rng.uniform(0, 0.25)
                prompt = [
                    rng.choice([table.unknown, rng.randrange(table.n_text)]) if rng.random() < spoilt else token
                    for token in prompt
                ]
        if prompt:
            transcript.feed(table[whisper.PREVIOUS], *prompt[-LONGEST_PROMPT:])

    def _earlier_window(self, kind: str, like: Utterance | None, heard: list[Utterance]) -> list[int]:
        """Tokens of a window that could have come before; now and then with an utterance heard in this one."""
        rng, table = self._rng, self._table
        tokens: list[int] = []
        time = rng.uniform(0, 1.2)
        for _ in range(rng.randint(2, 11)):
            again = heard and rng.random() < 0.05
            utterance = rng.choice(heard) if again else self._bank.draw(kind, rng, like)
            end = time + len(utterance.samples) / RATE
            if end > FULL:
                break
            text = utterance.tokens
            if rng.random() < 0.03:
                text = text[: rng.randint(1, len(text))]
            tokens += [table.timestamp(time), *text, table.timestamp(end)]
            time = end + rng.uniform(0.16, 1.6)
        if time <= FULL and rng.random() < 0.8:
            tokens.append(table.timestamp(time))
        return tokens

    # ---- arrays

    def _collated(self, windows: list[_Window], strength: float) -> Batch:
        longest = max(len(window.transcript.inputs) for window in windows)
        inputs = np.full((len(windows), longest), self._table[whisper.END], np.int64)
        targets: list[tuple[int, int, float]] = []
        spans: list[tuple[int, int, int]] = []
        for item, window in enumerate(windows):
            transcript = window.transcript
            inputs[item, : len(transcript.inputs)] = transcript.inputs
            base = item * longest
            for row, target in enumerate(transcript.targets, base):
                targets += [(row, token, share) for token, share in target.items()]
            spans += [(base + row, first, last) for row, first, last in transcript.spans]
        rows, ids, weights = zip(*targets, strict=True)
        samples = np.stack([window.samples for window in windows])
        phone = np.array([window.phone for window in windows])
        return Batch(
            mels=self._augmenter.spectrum(samples, phone, strength),
            offsets=np.array([window.offset for window in windows]),
            inputs=inputs,
            target_rows=np.array(rows),
            target_ids=np.array(ids),
            target_weights=np.array(weights, np.float32),
            spans=np.array(spans, np.int64).reshape(-1, 3),
            words=np.array([token for window in windows for token in window.words], np.int64),
            word_counts=np.array([len(window.words) for window in windows]),
            word_frames=np.array([window.word_frames for window in windows]),
            frame_words=np.stack([window.frame_words for window in windows]),
        )
