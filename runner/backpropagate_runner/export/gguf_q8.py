"""Q8_0: blocks of 32 values as one float16 scale and 32 signed bytes, to the bit as llama.cpp's reference makes them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

VALUES, BYTES = 32, 34
_AT_ONCE = 1 << 11  # blocks; they and what is computed of them stay in the processor's cache
_HALF = np.nextafter(
    np.float32(0.5), np.float32(0)
)  # added before cutting, rounds halves away from zero and nothing else up


def q8_0(rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(rows, columns) to (rows, bytes); the columns are whole blocks."""
    blocks = np.ascontiguousarray(rows).reshape(-1, VALUES)
    made = np.empty((len(blocks), BYTES), np.uint8)
    for start in range(0, len(blocks), _AT_ONCE):
        some, out = blocks[start : start + _AT_ONCE], made[start : start + _AT_ONCE]
        scale = np.abs(some).max(axis=1, keepdims=True) / np.float32(127)
        with np.errstate(divide="ignore"):
            inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
        scaled = some * inverse
        scaled += np.copysign(_HALF, scaled)
        with np.errstate(over="ignore"):
            out[:, :2] = scale.astype("<f2").view(np.uint8)
        out[:, 2:] = scaled.astype(np.int8).view(np.uint8)
    return made.reshape(*rows.shape[:-1], -1)
