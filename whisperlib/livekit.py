"""Speech to text for LiveKit Agents, in the agent's own process: docs/agents.md.

session = AgentSession(stt=STT({"model": "small", "language": "de"}), vad=..., llm=..., tts=...)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from whisperlib.errors import (
    BusyError,
    ClosedError,
    DeadlineExceeded,
    EngineError,
    TranscriptionCancelled,
    WhisperlibError,
)
from whisperlib.options import CancelToken
from whisperlib.results import Transcription
from whisperlib.stt import SpeechToText, SttConfig, create_stt

try:
    from livekit import rtc
    from livekit.agents import (
        NOT_GIVEN,
        APIConnectionError,
        APIConnectOptions,
        APIError,
        APIStatusError,
        APITimeoutError,
        LanguageCode,
        NotGivenOr,
        stt,
        utils,
    )
    from livekit.agents.types import TimedString
except ImportError as _missing:
    raise ImportError(
        f"whisperlib.livekit needs livekit-agents 1.8 or later ({_missing}): pip install 'whisperlib[livekit]'"
    ) from _missing


class STT(stt.STT[Literal["metrics_collected", "error"]]):
    """Recognises whole utterances; with a VAD, `AgentSession` and `stt.StreamAdapter` cut speech into these.

    `config` is what `create_stt` takes, or what it gave; it raises what that raises, and loads the model if nobody
    did before. `SpeechData` has times in seconds from the beginning of the utterance, the mean probability of its
    tokens as `confidence`, and `words` if the option `word_timestamps` is on. `conn_options.timeout` is the deadline
    of one attempt, 0 none.
    """

    def __init__(self, config: SpeechToText | SttConfig | Mapping[str, Any] | None = None) -> None:
        self._shared = config if isinstance(config, SpeechToText) else create_stt(config)
        self._model = self._shared.adapter.config.model
        self._running: set[CancelToken] = set()
        self._closed = False
        with_words = self._shared.options.word_timestamps
        super().__init__(
            capabilities=stt.STTCapabilities(
                streaming=False, interim_results=False, aligned_transcript="word" if with_words else False
            )
        )

    @property
    def speech_to_text(self) -> SpeechToText:
        """The instance that recognises, which other agents may share."""
        return self._shared

    @property
    def model(self) -> str:
        """Name of the model."""
        return self._model

    @property
    def provider(self) -> str:
        """Name of the provider."""
        return "whisperlib"

    async def aclose(self) -> None:
        """Stop the recognitions of this agent. The model stays loaded for the others."""
        self._closed = True
        for token in tuple(self._running):
            token.cancel()

    async def _recognize_impl(
        self,
        buffer: utils.AudioBuffer,
        *,
        language: NotGivenOr[str] = NOT_GIVEN,
        conn_options: APIConnectOptions,
    ) -> stt.SpeechEvent:
        token = CancelToken()
        options = self._shared.options
        deadlines = [seconds for seconds in (conn_options.timeout, options.timeout_seconds) if seconds]
        asked = language if utils.is_given(language) else options.language
        self._running.add(token)
        try:
            if self._closed:
                raise ClosedError("this STT was closed: make another")
            frame = rtc.combine_audio_frames(buffer)
            result = await self._shared.recognize(
                frame.data[: frame.samples_per_channel * frame.num_channels],
                sample_rate=frame.sample_rate,
                channels=frame.num_channels,
                language=asked,
                timeout_seconds=min(deadlines, default=None),
                cancel=token,
            )
        except (WhisperlibError, ValueError) as error:
            raise self._api_error(error) from error
        finally:
            self._running.discard(token)
        return stt.SpeechEvent(
            type=stt.SpeechEventType.FINAL_TRANSCRIPT,
            request_id=utils.shortuuid("whisperlib_"),
            alternatives=[_speech_data(result, asked or "")],
        )

    def _api_error(self, error: Exception) -> APIError:
        """Say in LiveKit's errors what happened, and whether the same once more may go better."""
        message = str(error)
        if isinstance(error, DeadlineExceeded):
            return APITimeoutError(message)
        if isinstance(error, BusyError):
            return APIStatusError(message, status_code=429)
        if isinstance(error, EngineError):
            return APIStatusError(message, status_code=500)
        if isinstance(error, ValueError):  # of the audio, or of the options
            return APIStatusError(message, status_code=400)
        # A model that another closed is loaded anew by the next attempt.
        closed = isinstance(error, (ClosedError, TranscriptionCancelled))
        return APIConnectionError(message, retryable=closed and not self._closed)


def _speech_data(result: Transcription, asked: str) -> stt.SpeechData:
    segments = result.segments
    n_tokens = sum(len(segment.tokens) for segment in segments)
    probability = sum(segment.probability * len(segment.tokens) for segment in segments)
    return stt.SpeechData(
        language=LanguageCode(result.language or asked),
        text=result.text,
        start_time=segments[0].start if segments else 0.0,
        end_time=segments[-1].end if segments else 0.0,
        confidence=probability / n_tokens if n_tokens else 0.0,
        words=[TimedString(word.text, word.start, word.end, word.probability) for word in result.words] or None,
    )
