"""Which tensors a GGUF file gets from a model's weights, in which type, and how a piece of each one is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from backpropagate_runner.export.float_bits import narrow
from backpropagate_runner.export.gguf_arch import GgufArch
from backpropagate_runner.export.gguf_q8 import BYTES, VALUES, q8_0
from backpropagate_runner.export.weights import Weights

# Bytes of one row of `columns` values. Rows of a type with blocks are whole blocks.
_WIDTH = {"F32": 4, "F16": 2, "BF16": 2}

# Bytes held at once for one value of a piece while it is made: its float32, and what comes before and after that.
_HELD = 16
_LARGEST_PIECE = 2 << 20  # values; more is not faster

TYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}


class Source(Protocol):
    """rows: float32. stored: the same in bits of `dtype`, which need no rounding."""

    @property
    def dtype(self) -> str: ...

    def rows(self, start: int, stop: int) -> NDArray[np.float32]: ...

    def stored(self, start: int, stop: int) -> NDArray[np.generic]: ...


@dataclass(frozen=True)
class Tensor:
    """One tensor of the file; shape as numpy has it. `step`: pieces are whole multiples of so many rows."""

    name: str
    shape: tuple[int, ...]
    type: str
    source: Source
    step: int = 1
    arrange: Callable[[NDArray[np.generic]], NDArray[np.generic]] | None = None

    @property
    def bytes(self) -> int:
        return prod(self.shape) // VALUES * BYTES if self.type == "Q8_0" else prod(self.shape) * _WIDTH[self.type]

    def pieces(self, memory: int) -> Iterator[tuple[int, int]]:
        """Ranges of rows that are made at once within `memory` bytes."""
        columns = prod(self.shape[1:])
        rows = min(memory // _HELD, _LARGEST_PIECE) // columns
        rows = max(rows // self.step, 1) * self.step
        for start in range(0, self.shape[0], rows):
            yield start, min(start + rows, self.shape[0])

    def piece(self, start: int, stop: int) -> tuple[NDArray[np.generic], bool]:
        """These rows as they go to disk, and whether a finite number became infinite on the way."""
        if self.source.dtype == self.type:
            return self._arranged(self.source.stored(start, stop)), False
        rows = self._floats(start, stop)
        if self.type == "F32":
            return rows, False
        if self.type == "F16":
            with np.errstate(over="ignore"):
                halves = rows.astype(np.float16)
            return halves, bool(np.isinf(halves).any() and (np.isinf(halves) != np.isinf(rows)).any())
        if self.type == "BF16":
            upper = np.empty(rows.shape, np.uint16)
            narrow(np.array(rows), "BF16", upper)  # which uses up what it is given
            return upper, False
        return q8_0(rows), False

    def _floats(self, start: int, stop: int) -> NDArray[np.float32]:
        rows: NDArray[np.float32] = self._arranged(self.source.rows(start, stop)).astype(np.float32, copy=False)
        return rows

    def _arranged(self, rows: NDArray[np.generic]) -> NDArray[np.generic]:
        return rows if self.arrange is None else self.arrange(rows)


@dataclass(frozen=True)
class _Read:
    weights: Weights
    name: str

    @property
    def dtype(self) -> str:
        return self.weights.dtype(self.name)

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        return self.weights.rows(self.name, start, stop)

    def stored(self, start: int, stop: int) -> NDArray[np.generic]:
        return self.weights.stored(self.name, start, stop)


@dataclass(frozen=True)
class Computed:
    """Numbers that are in no file of the model."""

    values: NDArray[np.float32]
    dtype: str = "F32"

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        return self.values[start:stop]

    def stored(self, start: int, stop: int) -> NDArray[np.generic]:
        return self.values[start:stop]


def tensors(weights: Weights, arch: GgufArch, wanted: str) -> list[Tensor]:
    """All of them, in the order of the file. wanted: f32, f16, bf16, q8_0. Raises NotCovered as `GgufArch.names` does."""
    made = [
        Tensor(name, (len(values),), "F32", Computed(np.array(values, dtype=np.float32)))
        for name, values in arch.factors.items()
    ]
    for name, mapped in arch.all_names(weights.names).items():
        shape = weights.shape(name)
        heads = arch.heads(name)
        made.append(
            Tensor(
                name=mapped,
                shape=shape,
                type=_type(mapped, shape, TYPES[wanted]),
                source=_Read(weights, name),
                step=shape[0] // heads if heads else 1,
                arrange=pairs(shape[0] // heads) if heads else None,
            )
        )
    return made


def pairs(head_dim: int) -> Callable[[NDArray[np.generic]], NDArray[np.generic]]:
    """Rows of whole heads, from two halves that turn together to neighbours that turn together."""

    def arrange(rows: NDArray[np.generic]) -> NDArray[np.generic]:
        halves = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)

    return arrange


def _type(name: str, shape: tuple[int, ...], wanted: str) -> str:
    """As llama.cpp wants it: vectors and norms are small, and are computed with in float32."""
    if len(shape) < 2 or name.endswith("_norm.weight"):
        return "F32"
    if wanted == "Q8_0" and shape[-1] % VALUES:
        return "F16"
    return wanted
