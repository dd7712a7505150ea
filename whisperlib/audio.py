"""Any input → float32 mono at 16 kHz."""

from __future__ import annotations

import contextlib
import io
import math
import numbers
import os
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
import soxr

from whisperlib import _decoders
from whisperlib._decoders import BLOCK_FRAMES, Block, Reader
from whisperlib.errors import AudioDecodeError, AudioError, AudioNotFoundError, AudioTooLongError, OptionError
from whisperlib.pcm import SAMPLE_RATE, Samples

Source: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | npt.NDArray[Any]

DEFAULT_MAX_SECONDS = 4 * 3600.0  # 0.92 GB of samples
MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz; below, a second of input makes more than 16 of output
MAX_CHANNELS = 64
MAX_PEAK = 16.0  # 24 dB over full scale: no recording needs more headroom, and integers lie far above

_SPOOL_BYTES = 1 << 24  # of a stream that cannot seek: in memory up to here, in a temporary file beyond

# By dtype: the value that stands for silence, and what one unit is worth.
_SCALES = {"u1": (128, 2.0**-7), "i2": (0, 2.0**-15), "i4": (0, 2.0**-31), "f4": (0, 1.0), "f8": (0, 1.0)}


@dataclass(frozen=True)
class Decoded:
    """Samples as `load` gives them; when reading them began, by the monotonic clock, and how long it took."""

    samples: Samples
    started: float
    seconds: float


def decode(source: Source, *, max_seconds: float | None = DEFAULT_MAX_SECONDS) -> Decoded:
    """Load `source`, and take the time. Raises what `load` raises."""
    started = time.monotonic()
    samples = load(source, max_seconds=max_seconds)
    return Decoded(samples, started, time.monotonic() - started)


def load(
    source: Source, *, sample_rate: float | None = None, max_seconds: float | None = DEFAULT_MAX_SECONDS
) -> Samples:
    """Read audio as float32 mono at 16 kHz: shape (n,), C-contiguous, -1.0 to 1.0.

    `source` is a path, an encoded file as bytes, a binary file object, or an array.

    Of a file, the format is told from the content, whatever its name says, and the first audio track is read.
    What a truncated or damaged file still holds is used, as `ffmpeg` does; what is left out is counted in a
    warning in the log. A file object is read from its start, wherever it stands, or, if it cannot seek,
    from where it stands to its end; it is left open.

    An array has shape (frames,) or (frames, channels) and holds float32 or float64 of -1.0 to 1.0, or int16,
    int32 or uint8 (silence is 128) of the full range, at `sample_rate` Hz (only for arrays; 16000 if not
    given). A contiguous float32 array of shape (frames,) at 16 kHz comes back itself, not a copy.

    Channels become their mean, which needs no knowledge of their places and cannot exceed full scale. What
    still lies beyond ±1.0 is clipped, as playing it would. Arrays and uncompressed files that reach beyond
    ±16 are refused: their floats are integers that were never scaled.

    `max_seconds` limits the length of what comes out, whatever a header claims; None takes any length. An
    hour takes 230 MB.

    Raises AudioError when the source cannot be opened or read or its samples cannot be used (none at all,
    NaN, infinite; wrong shape, dtype, rate or scale), AudioDecodeError when it is not audio or nothing in it
    can be decoded, AudioTooLongError beyond `max_seconds`, and OptionError for an option without sense.
    """
    _check_limit(max_seconds)
    memory = io.BytesIO()
    if isinstance(source, np.ndarray):
        samples = _from_array(source, SAMPLE_RATE if sample_rate is None else sample_rate, max_seconds, memory)
        if samples is not None:
            return samples
    elif sample_rate is not None:
        raise OptionError(f"sample_rate = {sample_rate!r} is for arrays: files tell their own rate")
    else:
        _from_file(source, max_seconds, memory)
    return np.frombuffer(memory.getbuffer(), np.float32)


def load_into(file: BinaryIO, source: Source, *, max_seconds: float | None = DEFAULT_MAX_SECONDS) -> None:
    """Load `source` as `load` does, and leave its samples in `file`, from its start to its end.

    Raises what `load` raises, and OSError where `file` cannot be written.
    """
    _check_limit(max_seconds)
    if not isinstance(source, np.ndarray):
        _from_file(source, max_seconds, file)
    elif (samples := _from_array(source, SAMPLE_RATE, max_seconds, file)) is not None:
        _clear(file)
        file.write(samples.data)


def load_pcm(
    data: bytes | bytearray | memoryview,
    *,
    sample_rate: float,
    channels: int = 1,
    max_seconds: float | None = DEFAULT_MAX_SECONDS,
) -> Samples:
    """Read raw PCM as `load` reads an array: int16, little-endian, channels interleaved, at `sample_rate` Hz.

    Raises AudioError where the bytes are no whole frames of 1 to 64 channels, and what `load` raises.
    """
    if not 1 <= channels <= MAX_CHANNELS:
        raise AudioError(f"channels = {channels}: audio has 1 to {MAX_CHANNELS}")
    n_bytes = memoryview(data).nbytes
    if n_bytes % (2 * channels):
        raise AudioError(f"{n_bytes} bytes are no whole frames of {channels} × int16: is that the number of channels?")
    frames = np.frombuffer(data, "<i2").reshape(-1, channels)
    return load(frames, sample_rate=sample_rate, max_seconds=max_seconds)


def duration_seconds(samples: Samples) -> float:
    """Return the length of samples of shape (n,) at 16 kHz, in seconds."""
    return len(samples) / SAMPLE_RATE


def _check_limit(max_seconds: float | None) -> None:
    if max_seconds is not None and not max_seconds > 0:
        raise OptionError(f"max_seconds = {max_seconds!r}: give a number above 0, or None for no limit")


def _from_array(array: npt.NDArray[Any], rate: float, max_seconds: float | None, into: BinaryIO) -> Samples | None:
    """Return the array if it is what `load` gives, or else leave that in `into`."""
    if not isinstance(rate, numbers.Real):
        raise OptionError(f"sample_rate = {rate!r}: give a number of Hz")
    array = np.asarray(array)  # of a subclass, the plain array
    if array.dtype.str[1:] not in _SCALES:
        raise AudioError(f"dtype {array.dtype} is not audio: use float32, float64, int16, int32 or uint8")
    if array.ndim not in {1, 2} or array.size == 0:
        raise AudioError(f"shape {array.shape} is not audio: it should be (frames,) or (frames, channels)")
    if array.ndim == 2 and array.shape[0] < array.shape[1]:
        raise AudioError(f"shape {array.shape} has fewer frames than channels: pass the transpose, array.T")
    if array.dtype.kind == "f":
        _check_scale(array)
    if array.dtype == np.float32 and array.ndim == 1 and rate == SAMPLE_RATE and _peak(array) <= 1.0:
        _check_length(len(array), max_seconds)
        return np.require(array, requirements=["C", "ALIGNED"])
    frames = array[:, np.newaxis] if array.ndim == 1 else array
    blocks = ((rate, frames[i : i + BLOCK_FRAMES]) for i in range(0, len(frames), BLOCK_FRAMES))
    _collect(blocks, "the array", max_seconds, into)
    return None


def _from_file(source: object, max_seconds: float | None, into: BinaryIO) -> None:
    with _open(source) as reader:
        try:
            _decode(reader, max_seconds, into)
        finally:
            reader.raise_error()


@contextlib.contextmanager
def _open(source: object) -> Iterator[Reader]:
    name = "the input"
    with contextlib.ExitStack() as stack:
        file: Any = source
        if isinstance(source, (bytes, bytearray, memoryview)):
            file = io.BytesIO(bytes(source))
        elif isinstance(source, (str, os.PathLike)):
            path = os.fsdecode(source)
            name = repr(path)
            file = stack.enter_context(_open_path(path))
        elif not callable(getattr(source, "read", None)):
            kind = type(source).__name__
            raise AudioError(f"audio should be a path, bytes, a binary file or an array, not {kind}")
        reader = Reader(file, name)
        if reader.seek(0) != 0:
            reader = Reader(stack.enter_context(_spooled(reader)), name)
        yield reader


def _open_path(path: str) -> BinaryIO:
    if re.match(r"[a-z][a-z0-9+.-]+://", path, re.IGNORECASE):
        raise AudioError(f"{path} is a URL: download it first")
    try:
        return Path(path).open("rb")
    except FileNotFoundError:
        raise AudioNotFoundError(f"cannot open {path!r}: No such file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AudioError(f"cannot open {path!r}: {reason}") from error


@contextlib.contextmanager
def _spooled(reader: Reader) -> Iterator[Any]:
    with tempfile.SpooledTemporaryFile(_SPOOL_BYTES) as copy:
        try:
            while data := reader.read(1 << 20):
                copy.write(data)
        except OSError as error:
            raise AudioError(f"cannot keep {reader.name} in a temporary file: {error}") from error
        reader.raise_error()
        copy.seek(0)
        yield copy


def _decode(reader: Reader, max_seconds: float | None, into: BinaryIO) -> None:
    head = reader.read(_decoders.SNIFFED_BYTES)
    if not head:
        raise AudioDecodeError(f"{reader.name} is empty: it holds no bytes")
    if kind := _decoders.other_kind(head):
        raise AudioDecodeError(f"{reader.name} is not audio: it looks like {kind}")
    if _decoders.is_for_sndfile(head):
        with contextlib.suppress(AudioDecodeError):
            _collect(_scaled(_decoders.sndfile_blocks(reader)), reader.name, max_seconds, into)
            return
    _collect(_decoders.ffmpeg_blocks(reader), reader.name, max_seconds, into)


def _scaled(blocks: Iterator[Block]) -> Iterator[Block]:
    # Only of exact samples: a damaged MP3 packet can decode to anything, and the rest is still speech.
    for rate, frames in blocks:
        _check_scale(frames)
        yield rate, frames


def _collect(blocks: Iterator[Block], name: str, max_seconds: float | None, into: BinaryIO) -> None:
    _clear(into)  # of what a decoder that failed half-way had made
    collector = _Collector(max_seconds, into)
    for rate, frames in blocks:
        collector.add(rate, frames)
    if not collector.end():
        raise AudioDecodeError(f"{name} holds no samples")


def _clear(file: BinaryIO) -> None:
    file.seek(0)
    file.truncate()


class _Collector:
    """Turns blocks of any rate and channel count into samples in a file, and stops at the limit on duration.

    A file in memory is enlarged in place and becomes the array without a copy, so that the peak of memory stays near
    the size of the result.
    """

    def __init__(self, max_seconds: float | None, into: BinaryIO) -> None:
        self._max_seconds = max_seconds
        self._into = into
        self._n_samples = 0
        self._pending: list[Samples] = []
        self._pending_frames = 0
        self._rate: float | None = None
        self._resampler: soxr.ResampleStream | None = None

    def add(self, rate: float, frames: npt.NDArray[Any]) -> None:
        """Append samples of shape (frames, channels). A stream may change its rate and channels."""
        if rate != self._rate:
            self._flush(last=True)
            self._set_rate(rate)
        if frames.shape[1] > MAX_CHANNELS:
            raise AudioError(f"{frames.shape[1]} channels: audio has at most {MAX_CHANNELS}")
        self._pending.append(_mono(frames))
        self._pending_frames += len(frames)
        if self._pending_frames >= BLOCK_FRAMES:
            self._flush()

    def end(self) -> int:
        """Write what is left; return the number of samples in the file."""
        self._flush(last=True)
        return self._n_samples

    def _set_rate(self, rate: float) -> None:
        if not MIN_RATE <= rate <= MAX_RATE:
            raise AudioError(f"a sample rate of {rate} Hz is not between {MIN_RATE} and {MAX_RATE} Hz")
        self._rate = rate
        self._resampler = None
        if rate != SAMPLE_RATE:
            self._resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")

    def _flush(self, *, last: bool = False) -> None:
        block = np.concatenate([*self._pending, np.empty(0, np.float32)])
        self._pending.clear()
        self._pending_frames = 0
        if self._resampler is not None:
            block = self._resampler.resample_chunk(block, last=last)
        if not len(block):
            return
        peak = _peak(block)
        if not math.isfinite(peak):
            raise AudioError("the audio holds NaN or infinite samples")
        if peak > 1.0:
            np.clip(block, -1.0, 1.0, out=block)
        self._n_samples += len(block)
        _check_length(self._n_samples, self._max_seconds)
        self._into.write(block.data)


def _mono(frames: npt.NDArray[Any]) -> Samples:
    """Turn (frames, channels) of a dtype in `_SCALES` into float32 (frames,): the mean of the channels."""
    zero, unit = _SCALES[frames.dtype.str[1:]]
    channels = frames.shape[1]
    with np.errstate(all="ignore"):  # NaN and overflow are looked for in the result
        samples = frames.astype(np.float32)
        if zero:
            samples -= zero
        # A product: mean(axis=1) takes forty times as long on two channels side by side.
        return samples @ np.full(channels, unit / channels, np.float32)


def _peak(samples: npt.NDArray[Any]) -> float:
    """Return the largest magnitude of floats; NaN if there is one among them."""
    return float(max(samples.max(), -samples.min()))


def _check_scale(samples: npt.NDArray[Any]) -> None:
    peak = _peak(samples)
    if not math.isfinite(peak):
        raise AudioError("the audio holds NaN or infinite samples")
    if peak > MAX_PEAK:
        raise AudioError(
            f"float samples reach {peak:g} where full scale is 1.0: integers that were never scaled? "
            "Divide them by their full scale, 32768 for 16 bits"
        )


def _check_length(n: int, max_seconds: float | None) -> None:
    if max_seconds is not None and n > max_seconds * SAMPLE_RATE:
        raise AudioTooLongError(
            f"the audio is longer than the limit of {max_seconds:g} s: split it, or raise the limit"
        )
