"""Every exception that whisperlib raises on purpose.

    WhisperlibError
    ├── OptionError            an option or setting is out of range        (ValueError)
    ├── AudioError             the audio cannot be used                    (ValueError)
    │   ├── AudioNotFoundError no such file                                (FileNotFoundError)
    │   ├── AudioDecodeError   not audio, truncated, encrypted, no audio track
    │   └── AudioTooLongError  longer than the limit on decoded duration
    ├── ModelError             the model cannot be used
    │   ├── ModelNotFoundError no such name, directory or file             (FileNotFoundError)
    │   ├── ModelFileError     not a ggml Whisper model, damaged, wrong checksum
    │   ├── DownloadError      the file could not be fetched
    │   └── MemoryBudgetError  it does not fit beside the models that stay
    ├── LibraryError           the native libraries cannot be used
    │   ├── LibraryNotFoundError  no directory holds them                  (FileNotFoundError)
    │   ├── LibraryLoadError      a file is there but does not load
    │   └── AbiMismatchError      another version or struct layout
    ├── EngineError            native code reported a failure
    │   ├── OutOfMemoryError   an allocation failed                        (MemoryError)
    │   ├── EngineCrashedError the engine's own process has ended
    │   └── ForkedProcessError used in a process forked after the library was loaded
    ├── FetchError             the audio behind a URL could not be had
    │   ├── UrlRefusedError    malformed, or leads where it may not       (ValueError)
    │   ├── FetchTooLargeError more bytes than the limit
    │   └── FetchTimeoutError  not there in time                           (TimeoutError)
    ├── LanguageModelError     the language model gave no answer that can be used
    ├── BatchStoreError        the place where batches are kept fails
    ├── BatchesFullError       what is kept of batches leaves no room for another
    ├── BatchKeyTakenError     another batch has the key that this one was given
    ├── BusyError              not now; says after how many seconds to try again
    │   ├── OverloadedError    too much work is waiting
    │   └── UnavailableError   the model is not loaded, or the server is stopping
    ├── ClosedError            the handle or adapter was closed
    └── InterruptedTranscription  stopped before the end; holds what was finished
        ├── TranscriptionCancelled
        └── DeadlineExceeded                                               (TimeoutError)

The message says what was wrong, with what value, and what to do. Where a builtin exception fits, the
class inherits it, so that callers who know nothing of whisperlib can still catch it.
"""

from __future__ import annotations

import builtins
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from whisperlib.results import Transcription


class WhisperlibError(Exception):
    """Base of every exception below."""


class OptionError(WhisperlibError, ValueError):
    """An option, argument or setting has a value that cannot be used. `option` is its name, where it is one's."""

    def __init__(self, message: str, option: str | None = None) -> None:
        super().__init__(message)
        self.option = option


class AudioError(WhisperlibError, ValueError):
    """The audio cannot be used."""


class AudioNotFoundError(AudioError, FileNotFoundError):
    """There is no such audio file."""


class AudioDecodeError(AudioError):
    """The input is not audio that can be decoded: not audio, empty, truncated or encrypted."""


class AudioTooLongError(AudioError):
    """The decoded audio is longer than the limit."""


class ModelError(WhisperlibError):
    """The model cannot be used."""


class ModelNotFoundError(ModelError, FileNotFoundError):
    """No model has this name, or its file or directory is not there."""


class ModelFileError(ModelError):
    """The file is not a ggml Whisper model, is damaged, or has the wrong checksum."""


class DownloadError(ModelError):
    """A model file could not be fetched; nothing half-done stands under its final name."""


class MemoryBudgetError(ModelError):
    """The model takes more memory than the budget leaves beside the models that stay."""


class LibraryError(WhisperlibError):
    """The native libraries cannot be used."""


class LibraryNotFoundError(LibraryError, FileNotFoundError):
    """No directory that was searched holds the native libraries."""


class LibraryLoadError(LibraryError):
    """A native library is there but cannot be loaded."""


class AbiMismatchError(LibraryError):
    """The native library has another version or struct layout than this binding mirrors."""


class EngineError(WhisperlibError):
    """Native code reported a failure.

    `code` is the value that the C function returned, or None where it has none.
    """

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


class OutOfMemoryError(EngineError, builtins.MemoryError):
    """An allocation in native code failed."""


class EngineCrashedError(EngineError):
    """The process that had the model has ended, and the request with it. Nothing is known to be wrong with the request.

    Only with `WHISPER_ISOLATION=process`: else native code that crashes takes the caller along.
    """


class ForkedProcessError(EngineError):
    """Native code was used in a process forked after the library was loaded.

    Thread pools and CUDA do not survive a fork: load in the process that transcribes.
    """


class FetchError(WhisperlibError):
    """The audio behind a URL could not be fetched. `transient`: it may be possible later."""

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class UrlRefusedError(FetchError, ValueError):
    """The URL is malformed, has another scheme than http and https, or leads to an address that is not allowed."""


class FetchTooLargeError(FetchError):
    """The file behind the URL has more bytes than the limit."""


class FetchTimeoutError(FetchError, TimeoutError):
    """The file behind the URL did not come in time."""


class LanguageModelError(WhisperlibError):
    """The language model that cleans transcripts up gave no answer that can be used. `Enhancer` never raises it."""


class BatchStoreError(WhisperlibError):
    """The place where batches are kept cannot be used: not written, full, damaged, or somebody else's."""


class BatchesFullError(WhisperlibError):
    """What is kept of batches, their audio and their results, leaves no room for another."""


class BatchKeyTakenError(WhisperlibError):
    """A batch with this key is there, and is another one."""


class BusyError(WhisperlibError):
    """The request cannot be taken now. `retry_after_seconds` says when it is worth trying again."""

    def __init__(self, message: str, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class OverloadedError(BusyError):
    """The work that waits already would take longer than the request may wait."""


class UnavailableError(BusyError):
    """The model is still loading, could not be loaded, has crashed too often, or the server is stopping."""


class ClosedError(WhisperlibError):
    """The handle or adapter was closed before this call."""


class InterruptedTranscription(WhisperlibError):  # noqa: N818  (named for what happened)
    """The transcription was stopped before its end. `partial` holds the segments settled until then."""

    def __init__(self, message: str, partial: Transcription | None = None) -> None:
        super().__init__(message)
        self.partial = partial


class TranscriptionCancelled(InterruptedTranscription):
    """The caller's cancel token was set, or the adapter was closed."""


class DeadlineExceeded(InterruptedTranscription, TimeoutError):  # noqa: N818
    """The deadline passed before the end."""
