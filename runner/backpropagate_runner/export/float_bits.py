"""float16 and bfloat16 to float32 and back, bit for bit as torch does it on a CPU: to nearest, ties to even.

Stored numbers are handled as the arrays that numpy can hold: bfloat16, which it does not know, as uint16.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FLOATS = ("F32", "F16", "BF16")

# What is smaller than this stays finite when it is rounded.
LARGEST = {"F32": float("inf"), "F16": 65520.0, "BF16": 255.5 * 2.0**120}

# The element types of safetensors that a copy can pass through. Those of one byte that numpy lacks are bytes here.
STORED: dict[str, np.dtype[np.generic]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("u1"),
    "F8_E4M3": np.dtype("u1"),
    "F8_E5M2": np.dtype("u1"),
    "F8_E8M0": np.dtype("u1"),
}


def widen(stored: NDArray[np.generic], dtype: str, out: NDArray[np.float32]) -> None:
    """`stored` as float32 into `out`, which has its shape. Exact. `dtype` is one of FLOATS."""
    if dtype == "BF16":
        bits = out.view(np.uint32)
        np.copyto(bits, stored, casting="unsafe")
        np.left_shift(bits, 16, out=bits)
    else:
        np.copyto(out, stored, casting="same_kind")


def narrow(values: NDArray[np.float32], dtype: str, out: NDArray[np.generic]) -> None:
    """`values` rounded to `dtype` into `out`. The values may not be NaN, and are lost if `dtype` is BF16."""
    if dtype == "BF16":
        np.copyto(out, _rounded_bits(values) >> np.uint32(16), casting="unsafe")
    else:
        with np.errstate(over="ignore"):  # becomes infinite; whoever asked looks for that
            np.copyto(out, values, casting="same_kind")


def round_to(values: NDArray[np.float32], dtype: str) -> None:
    """The same, staying in float32: each value becomes the one that `dtype` would keep of it."""
    if dtype == "BF16":
        bits = _rounded_bits(values)
        np.bitwise_and(bits, np.uint32(0xFFFF0000), out=bits)
    elif dtype == "F16":
        with np.errstate(over="ignore"):
            np.copyto(values, values.astype(np.float16))


def _rounded_bits(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """In place: the upper halves are the rounded bfloat16."""
    bits = values.view(np.uint32)
    tie = bits >> np.uint32(16)
    np.bitwise_and(tie, np.uint32(1), out=tie)
    np.add(tie, np.uint32(0x7FFF), out=tie)
    np.add(bits, tie, out=bits)
    return bits
