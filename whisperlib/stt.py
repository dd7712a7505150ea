"""Speech to text for voice agents: one shared instance per model and language, loaded before anybody speaks.

    stt = create_stt({"model": "small", "language": "de"})
    text = (await stt.recognize(pcm, sample_rate=48_000, channels=2)).text

All instances of one model share one adapter, so a second language costs no second copy of the weights. With
`WHISPER_ISOLATION=process` that has the model in a process of its own.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import pydantic
from pydantic import Field

from whisperlib import audio
from whisperlib.audio import Source
from whisperlib.engine import Engine
from whisperlib.errors import OptionError
from whisperlib.languages import language_code
from whisperlib.loader import get_engine
from whisperlib.options import CancelToken, Frozen, Profile, TranscribeOptions
from whisperlib.results import Transcription
from whisperlib.settings import MODEL_NAMES, get_settings

_OWN_KEYS = {"language", "profile"}
_OF_ONE_REQUEST = {"cancel", "progress"}


class SttConfig(Frozen):
    """What an agent's speech to text is: the keys of its section in a configuration file.

    `options` are further ones of `TranscribeOptions` by name, `{"vad": False}` where the agent has a detector of its
    own. Raises OptionError, which names the key, its value and what is allowed.
    """

    model: str | None = Field(None, min_length=1, description="Name or path; left out: WHISPER_MODEL_SIZE.")
    language: str | None = Field(
        None, description="Code ('de'), regional tag or English name; left out or 'auto': it is detected each time."
    )
    profile: Profile = Field("fast", description="Defaults of the options; an utterance is short, and somebody waits.")
    options: TranscribeOptions = Field(default_factory=TranscribeOptions, description="Further options.")

    @pydantic.field_validator("model")
    @classmethod
    def _any_case(cls, value: str | None) -> str | None:
        return value.lower() if value is not None and value.lower() in MODEL_NAMES else value

    @pydantic.field_validator("language")
    @classmethod
    def _known_language(cls, value: str | None) -> str | None:
        return language_code(value)

    @pydantic.field_validator("options")
    @classmethod
    def _shared_options(cls, value: TranscribeOptions) -> TranscribeOptions:
        if named := sorted(value.model_fields_set & _OWN_KEYS):
            raise ValueError(f"give {' and '.join(named)} beside options, not in them")
        if named := sorted(value.model_fields_set & _OF_ONE_REQUEST):
            raise ValueError(f"{' and '.join(named)} can only be given with a request")
        return value


class SpeechToText:
    """A model that listens with the same options each time; `create_stt` gives the shared one.

    It may be used from any thread and any event loop. A model that was closed is loaded anew by the next request.
    """

    def __init__(self, model: str | None, options: TranscribeOptions) -> None:
        self._model = model
        self._options = options
        self._adapter: Engine | None = None

    @property
    def options(self) -> TranscribeOptions:
        """The options of every request, with the defaults of their profile."""
        return self._options.with_profile()

    @property
    def adapter(self) -> Engine:
        """The loaded model, which others may share; it is loaded if it is not, where `WHISPER_ISOLATION` says.

        Raises what `WhisperLibraryAdapter` raises.
        """
        adapter = self._adapter
        if adapter is None or adapter.closed:
            adapter = self._adapter = get_engine(self._model)
        return adapter

    @property
    def ready(self) -> bool:
        """Whether the model is loaded and warm."""
        return self._adapter is not None and not self._adapter.closed

    def transcribe(
        self, source: Source, *, sample_rate: float | None = None, channels: int = 1, **overrides: Any
    ) -> Transcription:
        """Transcribe an utterance.

        `source` is raw PCM if it is bytes and `sample_rate` (Hz) is given: int16, little-endian, `channels`
        interleaved. Else it is what `audio.load` takes. `overrides` are options of this request by name. Raises what
        `WhisperLibraryAdapter.transcribe` raises.
        """
        adapter = self.adapter
        longest = adapter.settings.max_audio_seconds
        if isinstance(source, (bytes, bytearray, memoryview)) and sample_rate is not None:
            samples = audio.load_pcm(source, sample_rate=sample_rate, channels=channels, max_seconds=longest)
        elif channels != 1:
            raise OptionError(f"channels = {channels} is for raw PCM, bytes with a sample_rate")
        else:
            samples = audio.load(source, sample_rate=sample_rate, max_seconds=longest)
        return adapter.transcribe(samples, self._options, **overrides)

    async def recognize(
        self, source: Source, *, sample_rate: float | None = None, channels: int = 1, **overrides: Any
    ) -> Transcription:
        """Transcribe as `transcribe` does, in a thread. To cancel the task stops the transcription."""
        token = overrides["cancel"] = overrides.get("cancel") or CancelToken()
        work = partial(self.transcribe, source, sample_rate=sample_rate, channels=channels, **overrides)
        # Not in asyncio's own threads: they are few, and utterances that wait for a slot would keep all else out.
        thread = ThreadPoolExecutor(1, thread_name_prefix="whisper-stt")
        future = asyncio.get_running_loop().run_in_executor(thread, copy_context().run, work)
        thread.shutdown(wait=False)
        try:
            return await future
        except asyncio.CancelledError:
            token.cancel()
            raise


# Those that somebody holds: a prompt of its own for each conversation must not fill the memory.
_instances: WeakValueDictionary[tuple[str, TranscribeOptions], SpeechToText] = WeakValueDictionary()
_instances_lock = threading.Lock()


def create_stt(config: SttConfig | Mapping[str, Any] | None = None) -> SpeechToText:
    """Return the shared instance for this model, language and options, with its model loaded and warm.

    However many ask at once, a model is loaded once; a failed load is tried anew at the next call. The first call
    takes as long as loading does: make it before the agent listens, in an event loop by `asyncio.to_thread`. Raises
    OptionError for an unknown key or a value that cannot be used, and what `WhisperLibraryAdapter` raises.
    """
    if not isinstance(config, SttConfig):
        config = SttConfig(**_with_text_keys(config or {}))
    default = get_settings().model_size
    model = config.model or default
    options = config.options.replace(language=config.language, profile=config.profile)
    # Named or not, the default model is the one of get_model().
    made = SpeechToText(None if model == default else model, options)
    with _instances_lock:
        shared = _instances.setdefault((model, made.options), made)
    _ = shared.adapter
    return shared


def _with_text_keys(config: object) -> dict[str, Any]:
    if not isinstance(config, Mapping):
        raise OptionError(f"config should be SttConfig or a mapping, not {type(config).__name__}")
    return {str(key): value for key, value in config.items()}
