"""Our Q8_0 is that of the gguf package, which is llama.cpp's, in every bit."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import quantize
from numpy.typing import NDArray

from backpropagate_runner.export.gguf_q8 import q8_0

_RANDOM = np.random.default_rng(1)
_HALVES = (np.arange(-127, 128, dtype=np.float32) / 2).repeat(2)[: 32 * 15].reshape(15, 32)
_HALVES[:, 0] = 127.0  # a scale of one: the rest are halves and whole numbers


@pytest.mark.parametrize(
    "values",
    [
        _RANDOM.standard_normal((300, 4096)).astype(np.float32),
        (_RANDOM.standard_normal((64, 64)) * 1e-7).astype(np.float32),
        (_RANDOM.standard_cauchy((500, 64))).astype(np.float32),
        _HALVES,
        np.nextafter(_HALVES, np.float32(0)),
        np.nextafter(_HALVES, np.float32(np.inf)),
        np.zeros((3, 64), np.float32),
    ],
    ids=["normal", "tiny", "outliers", "halves", "just below", "just above", "zeros"],
)
def test_every_bit_is_the_reference_quantizers(values: NDArray[np.float32]) -> None:
    assert np.array_equal(q8_0(values), quantize(values, GGMLQuantizationType.Q8_0))
