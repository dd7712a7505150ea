"""whisper.cpp's and ggml's log, handed to `logging` as `whisperlib.native`."""

from __future__ import annotations

import atexit
import ctypes
import logging
import threading
from collections import deque

from whisperlib.binding.structs import LogCallback

logger = logging.getLogger("whisperlib.native")

# enum ggml_log_level. What the C code calls information is detail to a Python caller.
_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.WARNING, 4: logging.ERROR}
_CONTINUATION = 5
_ERROR = 4


class _ThreadLog(threading.local):
    def __init__(self) -> None:
        self.pending = b""
        self.level = 2
        self.errors: deque[str] = deque(maxlen=4)
        self.stopping = False


_thread = _ThreadLog()


def _receive(level: int, text: bytes | None, _user_data: object) -> None:
    # An exception in a ctypes callback is only printed, so nothing here may raise.
    if level != _CONTINUATION:
        _thread.level = level
    _thread.pending += text or b""
    *lines, _thread.pending = _thread.pending.split(b"\n")
    for line in lines:
        message = line.decode("utf-8", "replace").rstrip()
        if not message:
            continue
        if _thread.level == _ERROR:
            _thread.errors.append(message)
        level = logging.DEBUG if _thread.stopping else _LEVELS.get(_thread.level, logging.DEBUG)
        logger.log(level, "%s", message)


_receive_from_c = LogCallback(_receive)


def forget_errors() -> None:
    """Forget the errors that native code has logged on this thread, and that it was told to stop."""
    _thread.errors.clear()
    _thread.stopping = False


def expect_stop() -> None:
    """Take what native code on this thread says from here on as detail: it was told to stop, and calls that failing."""
    _thread.stopping = True


def recent_errors() -> str:
    """Return what native code has logged as errors on this thread since `forget_errors`, in one line."""
    return "; ".join(_thread.errors)


def attach(whisper: ctypes.CDLL, shim: ctypes.CDLL | None) -> None:
    """Send the log of a loaded library to `logging`, until the interpreter ends."""
    # void whisper_log_set(ggml_log_callback log_callback, void * user_data);
    whisper.whisper_log_set.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    whisper.whisper_log_set.restype = None
    whisper.whisper_log_set(ctypes.cast(_receive_from_c, ctypes.c_void_p), None)
    if shim:
        # void whisperlib_guard_log_set(ggml_log_callback callback);
        shim.whisperlib_guard_log_set.argtypes = [ctypes.c_void_p]
        shim.whisperlib_guard_log_set.restype = None
        shim.whisperlib_guard_log_set(ctypes.cast(_receive_from_c, ctypes.c_void_p))
        atexit.register(shim.whisperlib_guard_log_set, None)
    # Native destructors may still log when Python can no longer be called.
    silent = ctypes.cast(shim.whisperlib_log_discard, ctypes.c_void_p) if shim else None
    atexit.register(whisper.whisper_log_set, silent, None)
