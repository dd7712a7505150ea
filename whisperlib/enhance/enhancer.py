"""`Enhancer`: a transcript through a language model, piece by piece, and back only where it is a correction."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Literal, cast

from whisperlib.enhance import guard, pieces, prompt
from whisperlib.enhance.client import LanguageModel, watched
from whisperlib.enhance.pieces import Piece
from whisperlib.errors import LanguageModelError, OptionError
from whisperlib.options import CancelToken
from whisperlib.settings import Settings, without_credentials
from whisperlib.watch import Watch

logger = logging.getLogger(__name__)

Status = Literal["enhanced", "skipped", "failed"]

MORE_TOKENS = 64  # for a short text
MAX_AT_ONCE = 4  # questions of one Enhancer: what waits at a server of its own uses up the time for its answer


@dataclass(frozen=True)
class Enhancement:
    """What came of a clean-up. `text` is there where `status` is `enhanced`, and None otherwise.

    `reason` says why not; beside a text, which part of it is as it was, and why. `seconds` is the time that it took.
    """

    status: Status
    text: str | None = None
    reason: str | None = None
    model: str | None = None
    seconds: float = field(default=0.0, compare=False)


class Enhancer:
    """Has a language model correct transcripts. Safe to use from many threads.

    `timeout_seconds` bounds the answer to one piece, so that a long text has the time that its pieces need. `answered`
    is set when it has corrected its first text.
    """

    def __init__(self, model: LanguageModel, timeout_seconds: float = 60.0) -> None:
        self.model = model
        self.timeout_seconds = timeout_seconds
        self.answered = threading.Event()
        self._turns = _Turns(MAX_AT_ONCE)

    @classmethod
    def from_settings(cls, settings: Settings) -> Enhancer | None:
        """Make the one that the settings describe, None where they name no server. Raises OptionError."""
        if settings.llm_base_url is None:
            return None
        if settings.llm_model is None:
            raise OptionError(
                f"WHISPER_LLM_BASE_URL = {without_credentials(settings.llm_base_url)!r} is set and WHISPER_LLM_MODEL "
                "is not: name the model that is to be asked there"
            )
        model = LanguageModel(
            settings.llm_base_url,
            settings.llm_model,
            temperature=settings.llm_temperature,
            api_key=settings.llm_api_key,
        )
        return cls(model, settings.llm_timeout)

    def enhance(
        self,
        text: str,
        language: str | None = None,
        cancel: CancelToken | None = None,
        timeout_seconds: float | None = None,
    ) -> Enhancement:
        """Clean a transcript up; `language` is its code, and `timeout_seconds` bounds the whole, however long it is."""
        *_, enhancement = self._run(text, language, cancel, timeout_seconds, stream=False)
        return cast(Enhancement, enhancement)

    def stream(
        self,
        text: str,
        language: str | None = None,
        cancel: CancelToken | None = None,
        timeout_seconds: float | None = None,
    ) -> Iterator[str | Enhancement]:
        """Do as `enhance` does, giving the text as it is produced; the Enhancement comes last.

        Only the Enhancement tells whether what came before it is a correction. To close the iterator hangs up.
        """
        return self._run(text, language, cancel, timeout_seconds, stream=True)

    def _run(
        self,
        text: str,
        language: str | None,
        cancel: CancelToken | None,
        timeout_seconds: float | None,
        *,
        stream: bool,
    ) -> Generator[str | Enhancement, None, None]:
        started = time.monotonic()
        if not text.strip():
            yield Enhancement("skipped", reason="there is no text", model=self.model.name)
            return
        bounds = _Bounds(self.timeout_seconds, math.inf if timeout_seconds is None else timeout_seconds, cancel)
        work = _Work(self.model, self._turns, language, bounds, stream)
        enhanced = yield from work.run([*pieces.split(text)])
        status: Status = "failed" if enhanced is None else "enhanced"
        if enhanced is not None:
            self.answered.set()
        reason = work.reason()
        spent = time.monotonic() - started
        if work.error or status == "failed":
            part = "a transcript" if status == "failed" else "a part of a transcript"
            logger.warning("%s was not cleaned up by %s: %s", part, self.model.name, reason)
        yield Enhancement(status, enhanced, reason, self.model.name, spent)


class _Bounds:
    """How long one answer may take, and the whole from now on."""

    def __init__(self, piece_seconds: float, whole_seconds: float, cancel: CancelToken | None) -> None:
        self._piece_seconds = piece_seconds
        self._whole_seconds = whole_seconds
        self._deadline = time.monotonic() + whole_seconds
        self._cancel = cancel

    def remaining_seconds(self) -> float:
        """Seconds that are left of the whole. Raises LanguageModelError when it is over."""
        self.of_a_piece().check()
        return max(self._deadline - time.monotonic(), 0.0)

    @contextmanager
    def waking(self, wake: Callable[[], object]) -> Iterator[None]:
        """Have `wake` called if a cancel comes while the block runs."""
        if self._cancel is None:
            yield
            return
        self._cancel.add_listener(wake)
        try:
            yield
        finally:
            self._cancel.remove_listener(wake)

    def of_a_piece(self) -> Watch:
        """Return what ends the question for the next piece."""
        remaining = self._deadline - time.monotonic()
        if remaining < self._piece_seconds:
            return watched(remaining, self._cancel, given_seconds=self._whole_seconds)
        return watched(self._piece_seconds, self._cancel)


class _Turns:
    """Lets `n_at_once` ask at once, and the others wait within their bounds."""

    def __init__(self, n_at_once: int) -> None:
        self._n_free = n_at_once
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, bounds: _Bounds) -> Iterator[None]:
        """Wait for a turn, and have it until the block ends. Raises LanguageModelError."""
        with bounds.waking(self._wake), self._changed:
            while not self._n_free:
                self._changed.wait(min(bounds.remaining_seconds(), threading.TIMEOUT_MAX))
            self._n_free -= 1
        try:
            yield
        finally:
            with self._changed:
                self._n_free += 1
                self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


class _Work:
    """One transcript's way through the language model."""

    def __init__(
        self, model: LanguageModel, turns: _Turns, language: str | None, bounds: _Bounds, stream: bool
    ) -> None:
        self._model = model
        self._turns = turns
        self._language = language
        self._bounds = bounds
        self._stream = stream
        self._n_pieces = 0
        self._n_corrected = 0
        self._refusal: str | None = None  # the first
        self.error: LanguageModelError | None = None

    def run(self, parts: list[Piece]) -> Generator[str, None, str | None]:
        """Give the text as it comes; return the whole, in which what was not corrected is as it was; None if all is.

        After an error nothing more is asked.
        """
        self._n_pieces = len(parts)
        texts = []
        for part in parts:
            answer = None if self.error else (yield from self._correct(part.text))
            if answer is not None:
                self._n_corrected += 1
            texts.append((part.text if answer is None else answer) + part.gap)
            if part.gap and not self.error:
                yield part.gap
        return "".join(texts) if self._n_corrected else None

    def reason(self) -> str | None:
        """Say how much is as it was, and why."""
        refused = f"the language model's answer was refused: {self._refusal}" if self._refusal else None
        why = "; ".join(str(one) for one in (refused, self.error) if one)
        n_left = self._n_pieces - self._n_corrected
        if not why or self._n_pieces == 1 or (self.error and not self._n_corrected):
            return why or None
        return f"{n_left} of {self._n_pieces} parts are as they were: {why}"

    def _correct(self, source: str) -> Generator[str, None, str | None]:
        """Give an answer as it comes; return it, None where it is no correction or there is none."""
        try:
            with self._turns.taken(self._bounds), self._bounds.of_a_piece() as watch:
                return (yield from self._ask(source, watch))
        except LanguageModelError as error:
            self.error = error
            return None

    def _ask(self, source: str, watch: Watch) -> Generator[str, None, str | None]:
        asked = prompt.make(source, self._language)
        answer, finish_reason = "", None
        deltas = self._model.ask(asked.messages, max_tokens=_max_tokens(source), watch=watch, stream=self._stream)
        with closing(deltas):
            finish = _Finish(deltas)
            for delta in _trimmed(finish):
                answer += delta
                yield delta
                if guard.is_too_long(source, answer):
                    break  # it hangs up: who has lost the thread may go on for ever
            finish_reason = finish.reason
        watch.check()
        refusal = guard.why_refused(source, answer, finish_reason, asked.mark)
        self._refusal = self._refusal or refusal
        return None if refusal else answer


class _Finish:
    """Iterates over a generator and keeps what it returns."""

    def __init__(self, deltas: Generator[str, None, str | None]) -> None:
        self._deltas = deltas
        self.reason: str | None = None

    def __iter__(self) -> Iterator[str]:
        self.reason = yield from self._deltas


def _trimmed(deltas: Iterable[str]) -> Iterator[str]:
    """Leave out the space at both ends of a text that comes in parts."""
    begun, space = False, ""
    for delta in deltas:
        text = space + delta if begun else delta.lstrip()
        kept = text.rstrip()
        space = text[len(kept) :]
        if kept:
            begun = True
            yield kept


def _max_tokens(source: str) -> int:
    """Leave an answer as much room as its correction can need: no script takes more than two tokens for three bytes."""
    return MORE_TOKENS + 2 * len(source.encode("utf-8", "replace")) // 3
