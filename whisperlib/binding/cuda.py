"""Asks the NVIDIA driver, without any toolkit, whether CUDA can be used."""

from __future__ import annotations

import ctypes as c
from dataclasses import dataclass


@dataclass(frozen=True)
class CudaAvailability:
    """What the driver says: whether a device can be used, the CUDA version it supports, how many devices."""

    available: bool
    version: str | None
    device_count: int
    reason: str


def ask_driver() -> CudaAvailability:
    """Load libcuda, the driver's own library, and count its devices.

    Initialises CUDA's driver in this process: do not fork afterwards.
    """
    try:
        driver = c.CDLL("libcuda.so.1")
    except OSError:
        return CudaAvailability(False, None, 0, "no NVIDIA driver (libcuda.so.1) on this machine")
    # CUresult cuInit(unsigned int flags); the others: CUresult f(int *)
    if status := driver.cuInit(0):
        return CudaAvailability(False, None, 0, f"the NVIDIA driver does not start (cuInit returned {status})")
    version, count = c.c_int(), c.c_int()
    if driver.cuDriverGetVersion(c.byref(version)) or driver.cuDeviceGetCount(c.byref(count)):
        return CudaAvailability(False, None, 0, "the NVIDIA driver does not answer")
    # 1000 * major + 10 * minor
    text = f"{version.value // 1000}.{version.value % 1000 // 10}"
    reason = "ready" if count.value else "the NVIDIA driver sees no device"
    return CudaAvailability(count.value > 0, text, count.value, reason)
