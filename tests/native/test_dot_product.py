"""The dot product of f16 rows, by which one column attends, against NumPy's in doubles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cffi import FFI

from whisperlib import variants

FLOAT_EPSILON = 1.2e-7


@pytest.mark.parametrize("length", [1, 7, 15, 16, 17, 63, 64, 65, 127, 128, 750, 1500, 1536])
def test_it_is_summed_in_floats_to_the_end_of_the_row(length: int) -> None:
    ffi = FFI()
    ffi.cdef("void ggml_vec_dot_f16(int, float *, size_t, const void *, size_t, const void *, size_t, int);")
    library: Any = ffi.dlopen(str(variants.choose("cpu").directory / "libggml-cpu.so"))
    rng = np.random.default_rng(length)
    rows = rng.standard_normal((2, length + 64)).astype(np.float16)
    rows[:, length:] = np.nan  # what lies behind is not the row's
    x, y = rows
    found = ffi.new("float *")

    x_data, y_data = (ffi.cast("void *", row.ctypes.data) for row in rows)
    library.ggml_vec_dot_f16(length, found, 0, x_data, 0, y_data, 0, 1)

    products = x[:length].astype(np.float64) * y[:length]
    assert abs(found[0] - products.sum()) <= 8 * FLOAT_EPSILON * np.abs(products).sum()
