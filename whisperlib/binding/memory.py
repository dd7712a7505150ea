"""Gives memory that was freed back to the system."""

from __future__ import annotations

import ctypes as c


def release_unused() -> bool:
    """Return freed heap pages to the kernel; False where the C library cannot (it is not glibc).

    A request's buffers are freed in pieces, and glibc keeps what lies between pieces that are still in use.
    """
    try:
        trim = c.CDLL(None).malloc_trim
    except AttributeError:
        return False
    # int malloc_trim(size_t pad);
    trim.argtypes, trim.restype = [c.c_size_t], c.c_int
    trim(0)
    return True
