"""Encoded audio for tests, made with real encoders."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
import soundfile


def tone(
    seconds: float = 1.0, rate: int = 16_000, frequency: float = 1000.0, amplitude: float = 0.5
) -> npt.NDArray[np.float64]:
    """Return a sine, shape (frames,)."""
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


def sndfile(samples: npt.NDArray[Any], rate: int, container: str, subtype: str | None = None) -> bytes:
    """Encode samples of shape (frames,) or (frames, channels) with libsndfile."""
    file = io.BytesIO()
    channels = samples.shape[1] if samples.ndim == 2 else 1
    with soundfile.SoundFile(file, "w", rate, channels, format=container, subtype=subtype) as out:
        for start in range(0, len(samples), rate):  # its Vorbis encoder overflows the stack on long blocks
            out.write(samples[start : start + rate])
    return file.getvalue()


def ffmpeg(
    samples: npt.NDArray[Any],
    rate: int,
    container: str,
    codec: str | None,
    *,
    layout: str = "mono",
    video: str | None = None,
    options: Mapping[str, str] | None = None,
) -> bytes:
    """Encode samples of shape (frames,) into every channel of `layout` with FFmpeg, beside ten pictures.

    Without a `codec` there is no sound, without `video` no picture. Skips the test where an encoder is missing.
    """
    for name in filter(None, (codec, video)):
        if name not in av.codecs_available:
            pytest.skip(f"this build of PyAV has no encoder {name}")
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=dict(options or {})) as out:
        pictures: Any = out.add_stream(video, 10, width=64, height=64, pix_fmt="yuv420p") if video else None
        sound: Any = out.add_stream(codec, rate, layout=layout) if codec else None
        if pictures:
            for _ in range(10):
                out.mux(pictures.encode(av.VideoFrame(64, 64, "yuv420p")))
            out.mux(pictures.encode(None))
        if sound:
            frame = av.AudioFrame(format="flt", layout=layout, samples=len(samples))
            frame.planes[0].update(np.repeat(samples.astype(np.float32), sound.layout.nb_channels).tobytes())
            frame.sample_rate = rate
            resampler = av.AudioResampler(sound.format, layout, rate)
            for converted in [*resampler.resample(frame), *resampler.resample(None)]:
                out.mux(sound.encode(converted))
            out.mux(sound.encode(None))
    return file.getvalue()
