"""Interpolation element by element: M <- M f + lambda (X - M f), for one tensor over the runs, some rows at a time.

f is 1 unless the scale of the adapter changed between two runs (another alpha, or rsLoRA): then B is in other units, and
f = s_before / s_now says the same in the new ones. Each step is computed in float64 and kept in float32, as the state on the
disk is: going on from a state and beginning from the first run give the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backpropagate_runner.export.float_bits import widen
from backpropagate_runner.export.tensor_file import StoredTensor


@dataclass(frozen=True, slots=True)
class Step:
    """One run's turn."""

    tensor: StoredTensor
    coefficient: float
    rescale: float = 1.0


@dataclass(frozen=True, slots=True)
class Blend:
    """`before` is the state after the runs that `steps` no longer names; None: the first step's tensor begins it."""

    before: StoredTensor | None
    steps: tuple[Step, ...]

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows start … stop-1, as (rows, elements of a row). One-dimensional tensors have rows of one element."""
        value = None if self.before is None else float_rows(self.before, start, stop)
        for step in self.steps:
            new = float_rows(step.tensor, start, stop)
            if value is None or step.coefficient >= 1:
                value = new
                continue
            old = value.astype(np.float64)
            if step.rescale != 1:
                old *= step.rescale
            difference = new - old
            difference *= step.coefficient
            old += difference
            value = old.astype(np.float32)
        assert value is not None
        return value


def float_rows(tensor: StoredTensor, start: int, stop: int) -> NDArray[np.float32]:
    """As float32, exactly; a view of the file where it is stored so."""
    stored = tensor.read(start, stop)
    if tensor.dtype == "F32":
        return stored.view(np.float32)
    out = np.empty(stored.shape, np.float32)
    widen(stored, tensor.dtype, out)
    return out
