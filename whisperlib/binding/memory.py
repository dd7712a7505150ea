"""Gives memory that was freed back to the system."""

from __future__ import annotations

import ctypes as c

_M_ARENA_MAX = -8  # glibc's malloc.h


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


def share_arenas(count: int) -> None:
    """Have all threads that begin from now on share `count` arenas of the C library's allocator.

    By default each of many threads gets one of its own, up to eight for every core, and each keeps what it freed.
    """
    if mallopt := getattr(c.CDLL(None), "mallopt", None):
        mallopt(_M_ARENA_MAX, count)
