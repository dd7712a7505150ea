"""An encoder of the caller's in place of ggml's: what it is given, what it fills, how its errors come back."""

from __future__ import annotations

import ctypes as c
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Halves = npt.NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """The dimensions between encoder and decoder: mel bands, decoder layers, width of the decoder."""

    n_mels: int
    n_text_layer: int
    n_text_state: int

    def keys(self, n_audio_ctx: int) -> tuple[int, int, int]:
        """Shape of the cross-attention keys of a window of `n_audio_ctx` positions."""
        return (self.n_text_layer, n_audio_ctx, self.n_text_state)

    def values(self, n_audio_ctx: int) -> tuple[int, int, int]:
        """Shape of the cross-attention values: the positions come last."""
        return (self.n_text_layer, self.n_text_state, n_audio_ctx)


@dataclass(frozen=True, slots=True)
class CrossAttention:
    """What the decoder attends to, for one window.

    `keys`: float16, shape (n_text_layer, n_audio_ctx, n_text_state), scaled by (width of a head)^-0.25 as whisper.cpp
    keeps them; `values`: float16, shape (n_text_layer, n_text_state, n_audio_ctx).
    """

    keys: Halves
    values: Halves


@dataclass(frozen=True, slots=True)
class EncoderWindow:
    """One window to encode: read `mel`, fill `out`. The arrays are the library's memory: keep none of them.

    `mel`: float32, shape (n_mels, 2 · n_audio_ctx), Whisper's normalised log-mel spectrogram, 10 ms a column.
    """

    mel: npt.NDArray[np.float32]
    out: CrossAttention
    threads: int


Encoder = Callable[[EncoderWindow], None]

# typedef bool (*whisper_encoder_callback)(void * user_data, const float * mel, int n_audio_ctx, int n_threads,
#                                          void * k, void * v);
EncoderCallback = c.CFUNCTYPE(c.c_bool, c.c_void_p, c.POINTER(c.c_float), c.c_int, c.c_int, c.c_void_p, c.c_void_p)


class ExternalEncoder:
    """Keeps the C callback of one state alive, and the exception that its encoder raised."""

    def __init__(self, encode: Encoder, shape: EncoderShape) -> None:
        self.error: BaseException | None = None
        self._encode = encode
        self._shape = shape
        self.callback = EncoderCallback(self._call)

    def _call(self, _data: int, mel: object, n_audio_ctx: int, threads: int, keys: int, values: int) -> bool:
        try:
            window = EncoderWindow(
                mel=np.ctypeslib.as_array(mel, shape=(self._shape.n_mels, 2 * n_audio_ctx)),
                out=cross_attention(keys, values, self._shape, n_audio_ctx),
                threads=threads,
            )
            self._encode(window)
        except BaseException as error:  # cannot cross C: the state raises it
            self.error = error
            return False
        return True

    def take_error(self) -> BaseException | None:
        """Return the exception of the last run, once."""
        error, self.error = self.error, None
        return error


def cross_attention(keys: int, values: int, shape: EncoderShape, n_audio_ctx: int) -> CrossAttention:
    """View the library's keys and values as arrays."""
    return CrossAttention(
        _halves(keys, shape.keys(n_audio_ctx)),
        _halves(values, shape.values(n_audio_ctx)),
    )


def _halves(address: int, shape: tuple[int, ...]) -> Halves:
    raw = (c.c_uint16 * int(np.prod(shape))).from_address(address)
    return np.ctypeslib.as_array(raw).view(np.float16).reshape(shape)
