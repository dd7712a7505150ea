"""The only room that knows ctypes: whisper.cpp's C interface as a few safe Python objects."""

from whisperlib.binding.cuda import CudaAvailability, ask_driver
from whisperlib.binding.external import CrossAttention, Encoder, EncoderShape, EncoderWindow
from whisperlib.binding.handles import (
    Callbacks,
    Context,
    FullArguments,
    RawSegment,
    RawToken,
    State,
    VadContext,
)
from whisperlib.binding.library import Device, Library, load, loaded, runtime_directories
from whisperlib.binding.memory import release_unused, share_arenas
from whisperlib.binding.search import Candidate, candidates

__all__ = [
    "Callbacks",
    "Candidate",
    "Context",
    "CrossAttention",
    "CudaAvailability",
    "Device",
    "Encoder",
    "EncoderShape",
    "EncoderWindow",
    "FullArguments",
    "Library",
    "RawSegment",
    "RawToken",
    "State",
    "VadContext",
    "ask_driver",
    "candidates",
    "load",
    "loaded",
    "release_unused",
    "runtime_directories",
    "share_arenas",
]
