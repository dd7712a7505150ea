"""Whisper speech-to-text on your own machines.

from whisperlib import WhisperLibraryAdapter

with WhisperLibraryAdapter("small") as whisper:
    print(whisper.transcribe("talk.mp3").text)
"""

from importlib.metadata import PackageNotFoundError, version

from whisperlib import _openmp as _openmp  # first: nothing below may load an OpenMP runtime before it
from whisperlib.adapter import ModelConfig, WhisperLibraryAdapter
from whisperlib.errors import WhisperlibError
from whisperlib.job import TranscriptionStream
from whisperlib.loader import (
    close_all,
    detect_cuda_availability,
    get_adapter,
    get_model,
    get_model_config,
    load_model,
    unload_model,
)
from whisperlib.options import CancelToken, TranscribeOptions, VadOptions
from whisperlib.results import LanguageGuess, Segment, Timings, Transcription, Word
from whisperlib.stt import SpeechToText, SttConfig, create_stt

try:
    __version__ = version("whisperlib")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"

__all__ = [
    "CancelToken",
    "LanguageGuess",
    "ModelConfig",
    "Segment",
    "SpeechToText",
    "SttConfig",
    "Timings",
    "TranscribeOptions",
    "Transcription",
    "TranscriptionStream",
    "VadOptions",
    "WhisperLibraryAdapter",
    "WhisperlibError",
    "Word",
    "__version__",
    "close_all",
    "create_stt",
    "detect_cuda_availability",
    "get_adapter",
    "get_model",
    "get_model_config",
    "load_model",
    "unload_model",
]
