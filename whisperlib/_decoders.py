"""Encoded files → blocks of samples, by libsndfile (soundfile) or FFmpeg's libraries (PyAV).

libsndfile reads WAV, AIFF and FLAC, and FFmpeg everything else. Where libsndfile gives up on one of its
three, FFmpeg is asked too: libsndfile reads nothing from a WAV whose length was never filled in, and loses
the end of a FLAC that was streamed or damaged. Ogg and MP3 go to FFmpeg at once, because there libsndfile
stops without an error where the first of several chained streams ends, and prints to stderr when an MP3 is
damaged.
"""

from __future__ import annotations

import codecs
import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any, BinaryIO, TypeAlias

import av
import numpy as np
import numpy.typing as npt
import soundfile
from av.audio.plane import AudioPlane

from whisperlib.errors import AudioDecodeError, AudioError

logger = logging.getLogger(__name__)

Block: TypeAlias = tuple[float, npt.NDArray[Any]]  # rate in Hz, samples of shape (frames, channels)

BLOCK_FRAMES = 1 << 16  # 1.4 s at 48 kHz: so much at a time that Python's own share of the work is small
SNIFFED_BYTES = 512

_SNDFILE_MAGICS = (b"RIFF", b"RIFX", b"RF64", b"FORM", b"fLaC")

_FFMPEG_OPTIONS = {
    # Only formats that hold their sound themselves: a playlist would make FFmpeg open other files.
    "format_whitelist": "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,eac3,flac,flv,loas,matroska,mov,mp3,"
    "mpeg,mpegts,nistsphere,ogg,tta,voc,w64,wav,wv",
    "protocol_whitelist": "none",
    # No decoder runs while the format is being found out: every frame tells its own rate and channels, and
    # the video decoders stay out of a stranger's reach.
    "codec_whitelist": "none",
}

_DTYPES = {"u8": "u1", "s16": "i2", "s32": "i4", "flt": "f4", "dbl": "f8"}  # of FFmpeg's sample formats

_OTHER_MAGICS = {
    b"%PDF-": "a PDF",
    b"PK\x03\x04": "a ZIP archive or an office document",
    b"\x1f\x8b": "gzip data",
    b"BZh": "bzip2 data",
    b"\xfd7zXZ": "xz data",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89PNG": "a PNG image",
    b"GIF8": "a GIF image",
    b"MThd": "a MIDI file, which holds notes and no sound",
    b"\x7fELF": "a program",
    b"MZ": "a program",
    b"lmgg": "a ggml model",
    b"GGUF": "a GGUF model",
}


class Reader:
    """A seekable binary file as native code may use it: a failed read is the end of the file.

    No exception can cross C. The first one of a read is kept, and `raise_error` raises it.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name = name
        self._file = file
        self._error: BaseException | None = None

    def read(self, size: int) -> bytes:
        """Read up to `size` bytes."""
        if self._error is not None:
            return b""
        try:
            data = self._file.read(size)
            if not isinstance(data, (bytes, bytearray, memoryview)):
                raise TypeError(f"read() gave {type(data).__name__}, not bytes; is it open in binary mode?")
            if len(data) > size:  # native code would copy it all into a buffer of `size` bytes
                raise ValueError(f"read({size}) gave {len(data)} bytes")
        except BaseException as error:  # a Ctrl-C, too, would be lost in C
            self._error = error
            return b""
        return bytes(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Return the new position, or -1 for one that cannot be reached: damaged files lead to such."""
        try:
            self._file.seek(offset, whence)
            return self._file.tell()
        except Exception:
            return -1

    def tell(self) -> int:
        """Return the position."""
        return self.seek(0, os.SEEK_CUR)

    def raise_error(self) -> None:
        """Raise AudioError, or the Ctrl-C, if a read failed."""
        if isinstance(self._error, Exception):
            raise AudioError(f"cannot read {self.name}: {self._error}") from self._error
        if self._error is not None:
            raise self._error


def is_for_sndfile(head: bytes) -> bool:
    """Tell from the first bytes of a file whether libsndfile should try it before FFmpeg."""
    return head.startswith(_SNDFILE_MAGICS)


def other_kind(head: bytes) -> str | None:
    """Say what the first bytes of a file show it to be if that is not audio; None where it may be."""
    for magic, kind in _OTHER_MAGICS.items():
        if head.startswith(magic):
            return kind
    if head.startswith(b"NIST_1A"):  # audio, though its header is text
        return None
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head).lstrip()
    except UnicodeDecodeError:
        return None
    if text.lower().startswith(("<!doctype html", "<html")):
        return "an HTML page (an error page in place of the download?)"
    if all(char.isprintable() or char.isspace() for char in text):
        return f"text: {text[:40]!r}"
    return None


def sndfile_blocks(reader: Reader) -> Iterator[Block]:
    """Decode with libsndfile: float32. Raises AudioDecodeError, also after some blocks."""
    reader.seek(0)
    try:
        with soundfile.SoundFile(reader) as file:
            size = max(1, BLOCK_FRAMES // file.channels)
            while len(frames := file.read(size, dtype="float32", always_2d=True)):
                yield file.samplerate, frames
    except soundfile.SoundFileError as error:
        raise AudioDecodeError(f"{reader.name} cannot be decoded: {error}") from error


def ffmpeg_blocks(reader: Reader) -> Iterator[Block]:
    """Decode the first audio track with FFmpeg: float32, float64, int16, int32 or uint8.

    Rate, channels and dtype may change on the way. What is damaged is left out, with a warning in the log.
    Raises AudioDecodeError when no format is recognised, no track is audio, or it is encrypted.
    """
    with _open_container(reader) as container:
        stream = _audio_stream(container, reader.name)
        damaged = 0
        try:
            for packet in container.demux(stream):
                if packet.has_sidedata("encryption_info"):
                    raise AudioDecodeError(f"{reader.name} is encrypted (DRM)")
                try:
                    decoded = packet.decode()
                except av.FFmpegError:  # the next packet may be whole
                    damaged += 1
                    continue
                for frame in decoded:
                    yield frame.sample_rate, _frames(frame)
        except av.FFmpegError as error:
            logger.warning("%s: reading stopped before the end: %s", reader.name, error.strerror)
        if damaged:
            logger.warning("%s: left out %d damaged packets", reader.name, damaged)


def _open_container(reader: Reader) -> av.container.InputContainer:
    reader.seek(0)
    try:
        return av.open(reader, "r", metadata_errors="ignore", container_options=_FFMPEG_OPTIONS)
    except av.FFmpegError as error:
        raise AudioDecodeError(
            f"{reader.name} is not audio in a known format, or its header or index is damaged or cut off "
            f"({error.strerror}); samples without a header go in as an array"
        ) from error


def _audio_stream(container: av.container.InputContainer, name: str) -> av.AudioStream:
    if not container.streams.audio:
        video = ", only video" if container.streams.video else ""
        raise AudioDecodeError(f"{name} has no audio track{video}")
    stream = container.streams.audio[0]
    if stream.codec_context is None:
        raise AudioDecodeError(f"the audio in {name} has a codec that FFmpeg does not know")
    with contextlib.suppress(UnicodeDecodeError):  # a damaged tag
        if stream.codec_context.codec_tag == "drms":  # FairPlay: the samples would decode to noise
            raise AudioDecodeError(f"{name} is encrypted (DRM)")
    return stream


def _frames(frame: av.AudioFrame) -> npt.NDArray[Any]:
    dtype = _DTYPES.get(frame.format.packed.name)
    if dtype is None:
        raise AudioDecodeError(f"samples of the format {frame.format.name} are not supported")
    channels = frame.layout.nb_channels
    planar = frame.format.is_planar
    # Not frame.to_ndarray(), which looks for a null pointer after the last plane and crashes where there are
    # eight (7.1) or more.
    planes: list[Any] = [AudioPlane(frame, index) for index in range(channels if planar else 1)]
    count = frame.samples if planar else frame.samples * channels
    array = np.stack([np.frombuffer(plane, dtype, count) for plane in planes])
    return array.T if planar else array.reshape(-1, channels)
