from __future__ import annotations

import io
import logging
import os
import random
import struct
import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.audio_files import ffmpeg, sndfile, tone
from whisperlib import audio
from whisperlib.errors import AudioDecodeError, AudioError, AudioTooLongError, OptionError
from whisperlib.pcm import Samples

TONE = tone()  # one second, 1 kHz, amplitude 0.5, 16 kHz
WAV = sndfile(TONE, 16_000, "WAV", "PCM_16")
NOISE = np.random.default_rng(5).uniform(-0.5, 0.5, 16_000)

# name → the file, made when asked for. All hold one second of the tone.
LOSSY: dict[str, Callable[[], bytes]] = {
    "vorbis": lambda: sndfile(tone(rate=44_100), 44_100, "OGG", "VORBIS"),
    "opus": lambda: sndfile(tone(rate=48_000), 48_000, "OGG", "OPUS"),
    "mp3": lambda: sndfile(tone(rate=44_100), 44_100, "MP3"),
    "mp3-lame": lambda: ffmpeg(tone(rate=22_050), 22_050, "mp3", "libmp3lame", layout="stereo"),
    "m4a": lambda: ffmpeg(tone(rate=44_100), 44_100, "ipod", "aac", layout="stereo"),
    "aac": lambda: ffmpeg(tone(rate=44_100), 44_100, "adts", "aac"),
    "m4a-7.1": lambda: ffmpeg(tone(rate=48_000), 48_000, "ipod", "aac", layout="7.1"),
    "webm": lambda: ffmpeg(tone(rate=48_000), 48_000, "webm", "libopus", layout="stereo"),
    "webm-5.1": lambda: ffmpeg(tone(rate=48_000), 48_000, "webm", "libopus", layout="5.1"),
    "mkv": lambda: ffmpeg(tone(rate=48_000), 48_000, "matroska", "aac"),
    "mp4-video": lambda: ffmpeg(tone(rate=48_000), 48_000, "mp4", "aac", video="mpeg4"),
    "mpegts-video": lambda: ffmpeg(tone(rate=48_000), 48_000, "mpegts", "aac", video="mpeg2video"),
    "ulaw": lambda: sndfile(tone(rate=8_000), 8_000, "WAV", "ULAW"),
    "ima-adpcm": lambda: sndfile(tone(rate=44_100), 44_100, "WAV", "IMA_ADPCM"),
}

# name → (file, largest error of a sample). All hold the tone at 16 kHz exactly.
LOSSLESS: dict[str, tuple[Callable[[], bytes], float]] = {
    "wav-u8": (lambda: sndfile(TONE, 16_000, "WAV", "PCM_U8"), 2**-7),
    "wav-16": (lambda: WAV, 2**-15),
    "wav-24": (lambda: sndfile(TONE, 16_000, "WAV", "PCM_24"), 2**-22),
    "wav-32": (lambda: sndfile(TONE, 16_000, "WAV", "PCM_32"), 2**-23),
    "wav-float": (lambda: sndfile(TONE, 16_000, "WAV", "FLOAT"), 0),
    "wav-double": (lambda: sndfile(TONE, 16_000, "WAV", "DOUBLE"), 0),
    "wavex": (lambda: sndfile(TONE, 16_000, "WAVEX", "PCM_24"), 2**-22),
    "rf64": (lambda: sndfile(TONE, 16_000, "RF64", "PCM_24"), 2**-22),
    "aiff": (lambda: sndfile(TONE, 16_000, "AIFF", "PCM_24"), 2**-22),
    "aiff-float": (lambda: sndfile(TONE, 16_000, "AIFF", "FLOAT"), 0),
    "flac": (lambda: sndfile(TONE, 16_000, "FLAC", "PCM_24"), 2**-22),
    "au": (lambda: sndfile(TONE, 16_000, "AU", "PCM_24"), 2**-22),
    "caf": (lambda: sndfile(TONE, 16_000, "CAF", "PCM_24"), 2**-22),
    "w64": (lambda: sndfile(TONE, 16_000, "W64", "PCM_24"), 2**-22),
    "nist": (lambda: sndfile(TONE, 16_000, "NIST", "PCM_16"), 2**-15),
    "alac": (lambda: ffmpeg(TONE, 16_000, "ipod", "alac"), 2**-15),
    "wavpack-7.1": (lambda: ffmpeg(TONE, 16_000, "wv", "wavpack", layout="7.1"), 2**-7),  # its 8 bits, planar
}


def amplitude_at(samples: Samples, frequency: float) -> float:
    """Amplitude of one frequency, from the middle half: an integer number of periods of 1 kHz."""
    middle = samples[4000:12_000]
    return float(abs(np.exp(-2j * np.pi * frequency * np.arange(8000) / 16_000) @ middle) / 4000)


def check(samples: Samples) -> None:
    """Check what is promised of every result."""
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert len(samples) > 0
    assert samples.flags.c_contiguous
    assert np.abs(samples).max() <= 1.0


class Pipe(io.RawIOBase):
    """Gives its bytes once and cannot seek."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._data.readinto(buffer)


class FailsLater(io.BytesIO):
    """Raises an error after some reads."""

    def __init__(self, data: bytes, error: BaseException) -> None:
        super().__init__(data)
        self._reads_left = 3
        self._error = error

    def read(self, size: int | None = -1) -> bytes:
        if not self._reads_left:
            raise self._error
        self._reads_left -= 1
        return super().read(size)


class IgnoresSize(io.BytesIO):
    def read(self, _size: int | None = -1) -> bytes:
        return super().read()


class CountsBytes(io.BytesIO):
    count = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data


# Arrays


def test_float32_mono_16k_passes_without_a_copy() -> None:
    samples = TONE.astype(np.float32)
    assert audio.load(samples) is samples
    assert audio.load(samples, sample_rate=16_000) is samples
    samples.flags.writeable = False
    assert audio.load(samples) is samples


def test_an_array_is_never_changed() -> None:
    loud = np.linspace(-2, 2, 100, dtype=np.float32)
    before = loud.copy()
    assert audio.load(loud).max() == 1.0
    assert np.array_equal(loud, before)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([-1.0, 0.5, 1.0]), [-1.0, 0.5, 1.0]),
        (np.array([-32768, 0, 16384, 32767], np.int16), [-1.0, 0.0, 0.5, 1 - 2**-15]),
        (np.array([-(2**31), 0, 2**30], np.int32), [-1.0, 0.0, 0.5]),
        (np.array([0, 128, 192, 255], np.uint8), [-1.0, 0.0, 0.5, 127 / 128]),
        (np.array([0.25, -0.25], ">f4"), [0.25, -0.25]),
        (np.array([16384, -16384], ">i2"), [0.5, -0.5]),
        (np.arange(8, dtype=np.float32)[::2] / 8, [0.0, 0.25, 0.5, 0.75]),
        (np.array([[0.5], [0.25]]), [0.5, 0.25]),
        (np.array([[1.0, 0.0], [0.5, -0.5], [0.25, 0.75]]), [0.5, 0.0, 0.5]),
        (np.array([[32767, -32768]] * 2, np.int16), [-(2**-16), -(2**-16)]),
        (np.array([[0.9, 0.0, 0.0]] * 3), [0.3, 0.3, 0.3]),
        (np.asfortranarray(np.array([[1.0, 0.5], [0.0, -1.0]])), [0.75, -0.5]),
        (np.array([1.5, -3.0, 0.5]), [1.0, -1.0, 0.5]),
    ],
)
def test_array_values(array: np.ndarray, expected: list[float]) -> None:
    samples = audio.load(array)
    check(samples)
    np.testing.assert_allclose(samples, expected, rtol=0, atol=1e-7)


def test_unaligned_memory_is_copied_to_where_it_is_aligned() -> None:
    unaligned = np.frombuffer(b"\0" + np.array([0.5, -0.5], np.float32).tobytes(), np.float32, offset=1)
    samples = audio.load(unaligned)
    assert samples.flags.aligned
    assert samples.tolist() == [0.5, -0.5]


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000, 192_000, 44_099.5])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_tone_stays_the_same_tone_from_every_rate(rate: float, channels: int) -> None:
    source = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(int(2 * rate)) / rate)
    samples = audio.load(np.repeat(source[:, None], channels, axis=1), sample_rate=rate)
    check(samples)
    assert abs(len(samples) - 32_000) <= 1
    inner = slice(800, 31_200)  # the filter rings where the tone starts and stops
    expected = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(len(samples)) / 16_000)
    np.testing.assert_allclose(samples[inner], expected[inner], rtol=0, atol=2e-6)


def test_what_16_khz_cannot_hold_is_filtered_out() -> None:
    samples = audio.load(tone(1, 48_000, frequency=9_000), sample_rate=48_000)
    assert np.abs(samples[800:-800]).max() < 1e-4  # without a filter it would fold to 7 kHz


def test_blocks_join_without_a_seam() -> None:
    source = np.random.default_rng(1).uniform(-0.3, 0.3, 400_077)
    whole = audio.load(source.astype(np.float32)[:, None] * [1, 1])
    np.testing.assert_allclose(whole, source, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(0, np.float32), "should be"),
        (np.zeros((0, 2), np.float32), "should be"),
        (np.float32(0.5) * np.ones(()), "should be"),
        (np.zeros((9, 2, 2), np.float32), "should be"),
        (np.zeros((2, 16_000), np.float32), "transpose"),
        (np.zeros((1, 16_000), np.float32), "transpose"),
        (np.zeros((100, 65), np.float32), "65 channels"),
        (np.zeros(9, np.int64), "int64"),
        (np.zeros(9, np.float16), "float16"),
        (np.zeros(9, np.complex64), "complex64"),
        (np.zeros(9, bool), "bool"),
        (np.array(["a"]), "dtype"),
        (np.array([0, np.nan], np.float32), "NaN"),
        (np.array([0, -np.inf]), "infinite"),
        (np.array([[0, np.nan]] * 2), "NaN"),
        (np.array([0, -1200], np.float32), "1200"),
        (np.array([0, 1e300]), "full scale"),
    ],
)
def test_array_that_is_not_audio(array: np.ndarray, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        audio.load(array)


@pytest.mark.parametrize("rate", [0, -16_000, 999, 768_001, float("nan"), float("inf")])
def test_absurd_rate(rate: float) -> None:
    with pytest.raises(AudioError, match="sample rate"):
        audio.load(np.zeros(100), sample_rate=rate)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_raw_pcm_is_what_an_array_of_its_frames_is(kind: Callable[[bytes], Any]) -> None:
    frames = np.rint(tone(rate=44_100)[:, np.newaxis] * [32_767, -8_000]).astype("<i2")
    samples = audio.load_pcm(kind(frames.tobytes()), sample_rate=44_100, channels=2)
    assert np.array_equal(samples, audio.load(frames, sample_rate=44_100))


@pytest.mark.parametrize(
    ("n_bytes", "channels", "said"),
    [(6, 2, "6 bytes are no whole frames of 2 × int16"), (8, 0, "channels = 0"), (130, 65, "channels = 65")],
)
def test_raw_pcm_of_no_whole_frames(n_bytes: int, channels: int, said: str) -> None:
    with pytest.raises(AudioError, match=said):
        audio.load_pcm(bytes(n_bytes), sample_rate=16_000, channels=channels)


def test_options() -> None:
    with pytest.raises(OptionError, match="files tell their own rate"):
        audio.load(WAV, sample_rate=16_000)
    with pytest.raises(OptionError, match="'16000'"):
        audio.load(np.zeros(9), sample_rate="16000")  # type: ignore[arg-type]
    for limit in (0, -1.0, float("nan")):
        with pytest.raises(OptionError, match="max_seconds"):
            audio.load(WAV, max_seconds=limit)


def test_duration_seconds() -> None:
    assert audio.duration_seconds(np.zeros(24_000, np.float32)) == 1.5


# Formats


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_formats_keep_every_sample(name: str) -> None:
    make, error = LOSSLESS[name]
    samples = audio.load(make())
    check(samples)
    assert len(samples) == len(TONE)
    np.testing.assert_allclose(samples, TONE.astype(np.float32), rtol=0, atol=error)


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_formats_keep_the_tone(name: str) -> None:
    samples = audio.load(LOSSY[name]())
    check(samples)
    assert abs(len(samples) - 16_000) < 1_600  # AAC and MP3 pad to whole packets
    assert amplitude_at(samples, 1000) == pytest.approx(0.5, abs=0.07)  # the .1 of 7.1 holds only deep tones
    assert amplitude_at(samples, 2500) < 0.02


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000, 192_000])
def test_file_of_two_channels_is_their_mean_at_16_khz(rate: int) -> None:
    left, right = tone(1, rate, 1000, 0.6), tone(1, rate, 3000, 0.2)
    samples = audio.load(sndfile(np.stack([left, right], axis=1), rate, "WAV", "FLOAT"))
    assert len(samples) == 16_000
    assert amplitude_at(samples, 1000) == pytest.approx(0.3, abs=1e-4)
    assert amplitude_at(samples, 3000) == pytest.approx(0.1, abs=1e-4)


def test_the_content_counts_and_not_the_name(tmp_path: Path) -> None:
    for name, data in {"a.wav": LOSSY["mp3"](), "a.mp3": WAV, "a.txt": LOSSY["webm"]()}.items():
        (tmp_path / name).write_bytes(data)
        assert amplitude_at(audio.load(tmp_path / name), 1000) > 0.4


def test_rate_and_channels_may_change_on_the_way() -> None:
    first = ffmpeg(tone(2, 8_000), 8_000, "mp3", "libmp3lame")
    second = ffmpeg(tone(2, 48_000), 48_000, "mp3", "libmp3lame", layout="stereo")
    samples = audio.load(first + second)
    assert len(samples) == pytest.approx(64_000, abs=5_000)  # the second start is padding here
    assert amplitude_at(samples[:16_000], 1000) == pytest.approx(0.5, abs=0.05)
    assert amplitude_at(samples[-24_000:-8_000], 1000) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("name", ["vorbis", "opus", "mp3"])
def test_chained_streams_are_all_read(name: str) -> None:
    data = LOSSY[name]()
    assert len(audio.load(data + data)) > 31_000


def test_floats_of_a_file_that_overshoot_are_clipped() -> None:
    samples = audio.load(sndfile(tone(amplitude=1.5), 16_000, "WAV", "FLOAT"))
    check(samples)
    assert samples.max() == 1.0


# Sources


@pytest.mark.parametrize("name", ["wav", "mp3", "webm"])
def test_every_kind_of_source_gives_the_same(name: str, tmp_path: Path) -> None:
    data = WAV if name == "wav" else LOSSY[name]()
    path = tmp_path / "ärger mit leerzeichen"
    path.write_bytes(data)
    expected = audio.load(data)
    at_end = io.BytesIO(data)
    at_end.seek(0, os.SEEK_END)
    with path.open("rb") as file, path.open("rb", buffering=0) as raw:
        sources: list[audio.Source] = [
            path, str(path), bytearray(data), memoryview(data), memoryview(data + data)[: len(data)],
            io.BytesIO(data), at_end, file, raw, Pipe(data), io.BufferedReader(Pipe(data)),  # type: ignore[list-item]
        ]  # fmt: skip
        for source in sources:
            assert np.array_equal(audio.load(source), expected), type(source)
        assert not file.closed
        assert not raw.closed


def test_real_pipe() -> None:
    data = sndfile(tone(3), 16_000, "WAV", "PCM_16")  # more than a pipe holds at once
    reading, writing = os.pipe()
    writer = threading.Thread(target=_write_and_close, args=(writing, data))
    with os.fdopen(reading, "rb") as source:
        writer.start()
        assert len(audio.load(source)) == 48_000
        writer.join()


def _write_and_close(descriptor: int, data: bytes) -> None:
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


@pytest.mark.parametrize("source", [None, 5, [0.1, 0.2], object(), {}])
def test_something_else(source: Any) -> None:
    with pytest.raises(AudioError, match=type(source).__name__):
        audio.load(source)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere/a.wav", r"nowhere/a\.wav.*No such file"),
        (".", "directory"),
        ("", "cannot open ''"),
        ("a\0b", "null"),
        ("https://example.org/a.mp3", "URL"),
        ("S3://bucket/a.mp3", "URL"),
        ("file:///tmp/a.mp3", "URL"),
    ],
)
def test_path_that_cannot_be_opened(path: str, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        audio.load(path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_path_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(WAV)
    path.chmod(0)
    with pytest.raises(AudioError, match="Permission"):
        audio.load(path)


def test_file_objects_that_fail() -> None:
    closed = io.BytesIO(WAV)
    closed.close()
    for source, message in [
        (io.StringIO("text"), "binary mode"),
        (closed, "closed"),
        (IgnoresSize(WAV), r"gave \d+ bytes"),
        (FailsLater(WAV, OSError("disk on fire")), "disk on fire"),
        (FailsLater(LOSSY["mp3"](), OSError("disk on fire")), "disk on fire"),
        (FailsLater(b"", OSError("disk on fire")), "empty"),
    ]:
        with pytest.raises(AudioError, match=message):
            audio.load(source)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["wav", "mp3"])
def test_ctrl_c_is_not_lost_in_native_code(name: str) -> None:
    data = WAV if name == "wav" else LOSSY[name]()
    with pytest.raises(KeyboardInterrupt):
        audio.load(FailsLater(data, KeyboardInterrupt()))


# Damage


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0xFFFFFFFF])
def test_wav_with_the_wrong_length_is_read_to_its_end(size: int) -> None:
    start = WAV.index(b"data") + 4
    streamed = WAV[:start] + struct.pack("<I", size) + WAV[start + 4 :]
    assert len(audio.load(streamed)) == 16_000


@pytest.mark.parametrize("total", [0, 2**36 - 1])
def test_flac_with_the_wrong_length_is_read_to_its_end(total: int) -> None:
    data = bytearray(sndfile(np.tile(NOISE, 5), 16_000, "FLAC", "PCM_16"))
    fields = int.from_bytes(data[18:26], "big")  # rate, channels, bits, and 36 bits of length
    data[18:26] = (fields >> 36 << 36 | total).to_bytes(8, "big")
    assert len(audio.load(bytes(data))) == 80_000


@pytest.mark.parametrize("name", ["wav", "flac", "aiff", "vorbis", "opus", "mp3", "aac", "webm", "mkv"])
def test_truncated_file_gives_what_it_holds(name: str) -> None:
    speech = np.tile(NOISE, 10)
    data = {
        "wav": lambda: sndfile(speech, 16_000, "WAV"),
        "flac": lambda: sndfile(speech, 16_000, "FLAC"),
        "aiff": lambda: sndfile(speech, 16_000, "AIFF"),
        "vorbis": lambda: sndfile(speech, 16_000, "OGG", "VORBIS"),
        "opus": lambda: sndfile(speech, 16_000, "OGG", "OPUS"),
        "mp3": lambda: sndfile(speech, 16_000, "MP3"),
        "aac": lambda: ffmpeg(speech, 16_000, "adts", "aac"),
        "webm": lambda: ffmpeg(speech, 16_000, "webm", "libopus"),
        "mkv": lambda: ffmpeg(speech, 16_000, "matroska", "aac"),
    }[name]()
    samples = audio.load(data[: len(data) * 3 // 4])
    assert 0.6 * len(speech) < len(samples) < 0.85 * len(speech)


@pytest.mark.parametrize("name", ["FLAC", "MP3"])
def test_only_the_damaged_part_is_lost(
    name: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    data = bytearray(sndfile(np.tile(NOISE, 8), 16_000, name))
    middle = len(data) // 2
    data[middle : middle + 2000] = random.Random(1).randbytes(2000)
    with caplog.at_level(logging.WARNING, "whisperlib"):
        samples = audio.load(bytes(data))
    assert 6.5 * 16_000 < len(samples) < 9 * 16_000
    assert capfd.readouterr() == ("", "")
    if name == "MP3":
        assert "damaged packets" in caplog.text


def test_truncated_mp4_says_that_its_index_may_be_missing() -> None:
    data = LOSSY["m4a"]()
    with pytest.raises(AudioDecodeError, match="index is damaged or cut off"):
        audio.load(data[: len(data) * 3 // 4])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"hello, this is not audio", "text: 'hello"),
        ("grüße\n".encode() * 200, "text"),
        (b"\xef\xbb\xbf<!DOCTYPE html><html><body>404", "HTML"),
        (b"  <HTML>", "HTML"),
        (b'{"error": "not found"}', "text: '{"),
        (b"#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1/a.ts\n", "text: '#EXTM3U"),
        (b"PK\x03\x04" + bytes(600), "ZIP"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(600), "JPEG"),
        (b"\x89PNG\r\n\x1a\n" + bytes(600), "PNG"),
        (b"%PDF-1.7\n", "PDF"),
        (b"\x1f\x8b\x08" + bytes(600), "gzip"),
        (b"MThd\0\0\0\x06", "MIDI"),
        (b"lmgg" + bytes(600), "ggml model"),
        (bytes(10_000), "known format"),
        (random.Random(0).randbytes(10_000), "known format"),
        (tone(amplitude=9000).astype("<i2").tobytes(), "known format.*array"),
        (WAV[:44], "no samples"),
        (WAV[:20], "known format|no samples"),
    ],
)
def test_bytes_that_are_not_audio(data: bytes, message: str) -> None:
    with pytest.raises(AudioDecodeError, match=message):
        audio.load(data)


def test_a_file_that_names_others_does_not_open_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.wav").write_bytes(WAV)
    script = b"ffconcat version 1.0\nfile a.wav\n# \xff: not text\n"
    with pytest.raises(AudioDecodeError, match="known format"):
        audio.load(script)


def test_video_without_sound() -> None:
    with pytest.raises(AudioDecodeError, match="no audio track, only video"):
        audio.load(ffmpeg(TONE, 16_000, "mp4", None, video="mpeg4"))


def test_encrypted_mp4() -> None:
    key = "00112233445566778899aabbccddeeff"
    options = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": key, "encryption_kid": key}
    with pytest.raises(AudioDecodeError, match="encrypted"):
        audio.load(ffmpeg(TONE, 16_000, "mp4", "aac", options=options))


def test_m4p_of_a_shop() -> None:
    with pytest.raises(AudioDecodeError, match="encrypted"):
        audio.load(LOSSY["m4a"]().replace(b"mp4a", b"drms", 1))


def test_floats_that_are_integers_or_nan_in_a_file() -> None:
    with pytest.raises(AudioError, match="full scale"):
        audio.load(sndfile(tone(amplitude=9000), 16_000, "WAV", "FLOAT"))
    with pytest.raises(AudioError, match="NaN"):
        audio.load(sndfile(np.append(TONE, np.nan), 16_000, "WAV", "FLOAT"))


@pytest.mark.filterwarnings("error")
def test_floats_beyond_float32_in_a_file() -> None:
    with pytest.raises(AudioError, match="infinite"):
        audio.load(sndfile(np.append(TONE, 1e300), 16_000, "AU", "DOUBLE"))


def test_unknown_and_damaged_codec_tag() -> None:
    for tag in (0xFF, 0xFEFE):  # AAC, which this is not, and none; neither is ASCII
        with pytest.raises(AudioDecodeError, match="no samples|codec"):
            audio.load(WAV[:20] + struct.pack("<H", tag) + WAV[22:])


@pytest.mark.parametrize("rate", [1, 999, 2_000_000])
def test_absurd_rate_in_a_header(rate: int) -> None:
    with pytest.raises(AudioError, match="sample rate"):
        audio.load(WAV[:24] + struct.pack("<I", rate) + WAV[28:])


# Limits


@pytest.mark.parametrize("source", [WAV, TONE, TONE.astype(np.float32)], ids=["file", "array", "uncopied"])
def test_the_limit_is_exact(source: audio.Source) -> None:
    assert len(audio.load(source, max_seconds=1.0)) == 16_000
    assert len(audio.load(source, max_seconds=None)) == 16_000
    with pytest.raises(AudioTooLongError, match="limit of 0.9999 s"):
        audio.load(source, max_seconds=0.9999)


@pytest.mark.parametrize(("container", "seconds"), [("FLAC", 3600), ("MP3", 600)])
def test_a_small_file_that_grows_is_stopped_on_the_way(container: str, seconds: int) -> None:
    data = sndfile(np.zeros(seconds * 8_000, np.int16), 8_000, container)
    file = CountsBytes(data)
    tracemalloc.start()
    with pytest.raises(AudioTooLongError):
        audio.load(file, max_seconds=5)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5e6  # all of it would be 38 MB or more
    assert file.count < len(data) / 2


def test_memory_stays_near_the_size_of_the_result() -> None:
    data = sndfile(np.zeros(10 * 60 * 44_100, np.int16), 44_100, "FLAC")
    tracemalloc.start()
    samples = audio.load(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(samples) == 600 * 16_000
    assert peak < 1.3 * samples.nbytes


# Threads and fuzz


def test_many_threads_at_once() -> None:
    files = [WAV, LOSSLESS["flac"][0](), *(LOSSY[name]() for name in ("vorbis", "opus", "mp3", "m4a", "webm"))]
    files.append(b"not audio")

    def digest(data: bytes) -> bytes:
        try:
            return audio.load(data).tobytes()
        except AudioDecodeError as error:
            return str(error).encode()

    expected = [digest(data) for data in files]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(digest, files * 12)) == expected * 12


def damage(data: bytes, rng: random.Random) -> bytes:
    """Return `data` cut off, overwritten, shortened or repeated somewhere, most often in its header."""
    changed = bytearray(data)
    end = rng.choice([64, 256, len(changed)])
    start = rng.randrange(min(end, len(changed)))
    length = rng.choice([1, 2, 4, 500])
    match rng.randrange(4):
        case 0:
            del changed[start:]
        case 1:
            filling = rng.choice([b"\0", b"\xff", b"\x7f", rng.randbytes(1)])
            changed[start : start + length] = filling * length
        case 2:
            del changed[start : start + length]
        case _:
            changed[start : start + length] = rng.randbytes(length)
    return bytes(changed)


@pytest.mark.parametrize("seed", range(4))
def test_fuzzed_files_give_samples_or_an_audio_error(seed: int, capfd: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(seed)
    files = [make() for make, _ in LOSSLESS.values()] + [make() for make in LOSSY.values()]
    for _ in range(5):
        for data in files:
            broken = damage(data, rng)
            try:
                check(audio.load(broken, max_seconds=60))
            except AudioError:
                continue
    assert capfd.readouterr() == ("", "")


def test_damaged_aac_that_claims_many_channels(tmp_path: Path) -> None:
    """Packets with more channels than FFmpeg keeps pointers for once made PyAV read past the end of a list."""
    data = LOSSY["m4a-7.1"]()
    rng = random.Random(0)
    for _ in range(40):
        broken = bytearray(data)
        for _ in range(20):
            broken[rng.randrange(40, len(data))] = rng.randrange(256)
        try:
            check(audio.load(bytes(broken)))
        except AudioError:
            continue


@pytest.mark.parametrize(
    "source",
    [
        WAV,
        TONE,
        TONE[::2],
        TONE.astype(np.float64),
        ffmpeg(tone(rate=44_100), 44_100, "ipod", "aac"),
        sndfile(tone(3), 16_000, "FLAC", "PCM_24")[:40_000],
    ],
    ids=["wav", "array", "strided", "converted", "m4a", "truncated"],
)
def test_samples_in_a_file_are_those_of_load(source: Any, tmp_path: Path) -> None:
    expected = audio.load(source)
    with (tmp_path / "samples").open("w+b") as file:
        file.write(b"what was there before" * 100_000)
        audio.load_into(file, source)
        assert file.tell() == expected.nbytes
        file.seek(0)
        assert file.read() == expected.tobytes()


def test_the_limit_holds_for_a_file_too(tmp_path: Path) -> None:
    with (tmp_path / "samples").open("wb") as file:
        with pytest.raises(AudioTooLongError):
            audio.load_into(file, WAV, max_seconds=0.5)
        with pytest.raises(OptionError):
            audio.load_into(file, WAV, max_seconds=0)
