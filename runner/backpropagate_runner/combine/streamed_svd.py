"""A wide matrix cut to rank r while only some of its rows are in memory at a time.

Up to EXACT columns (the matrix may be given transposed, so the smaller side counts) it is exact: the triangle R of the rows
has the same right singular vectors. Beyond, the space of the first r right singular vectors is found by subspace iteration
with OVERSAMPLED more directions and PASSES passes over the rows, each of which multiplies by M^T M. The result is then near
the best cut, not equal to it: for spectra as sparsified adapters have them its error was within 1 % of the smallest possible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from backpropagate_runner.combine.low_rank import F32, svd, triangle, with_signs

EXACT = 768
OVERSAMPLED = 16
PASSES = 2


class Rows(Protocol):
    """A matrix of which a block of rows can be had. The blocks of one size are always computed alike."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def step(self) -> int:
        """Rows of a block."""

    def block(self, start: int) -> F32:
        """Rows start … start+step-1, or to the end."""


def cut_rows(matrix: Rows, r: int, tick: Callable[[], None], exact: int = EXACT) -> tuple[F32, F32]:
    """(A, B) with B A near `matrix`, as (r, columns) and (rows, r). `tick` is called for every block."""
    rows, columns = matrix.shape
    basis = _first_directions(matrix, r, tick) if columns <= exact else _main_directions(matrix, r, tick)
    # With orthonormal columns W, M W = Q R tells all that is left of M: R = U S V^T, and M is near (M W V) (W V)^T.
    image = np.concatenate([block @ basis for block in _blocks(matrix, tick)])
    _, S, Vt = svd(triangle([image]))
    noise = max(matrix.shape) * np.finfo(np.float32).eps * float(S.max(initial=0.0)) * 1e-3
    kept = min(r, int((noise < S).sum()))
    turned, roots = Vt[:kept].T, np.sqrt(S[:kept])
    A = np.zeros((r, columns), np.float32)
    A[:kept] = (basis @ turned * roots).T
    B = np.zeros((rows, r), np.float32)
    B[:, :kept] = image @ (turned / roots)
    return with_signs(A, B)


def _blocks(matrix: Rows, tick: Callable[[], None]) -> Iterator[NDArray[np.float64]]:
    for start in range(0, matrix.shape[0], matrix.step):
        yield matrix.block(start).astype(np.float64)
        tick()


def _first_directions(matrix: Rows, r: int, tick: Callable[[], None]) -> NDArray[np.float64]:
    _, _, Vt = svd(triangle(_blocks(matrix, tick)))
    return np.ascontiguousarray(Vt[:r].T)


def _main_directions(matrix: Rows, r: int, tick: Callable[[], None]) -> NDArray[np.float64]:
    columns = matrix.shape[1]
    start = np.random.Generator(np.random.Philox(0)).standard_normal((columns, min(columns, r + OVERSAMPLED)))
    basis = np.linalg.qr(start)[0]
    for _ in range(PASSES):
        image = np.zeros_like(basis)
        for block in _blocks(matrix, tick):
            image += block.T @ (block @ basis)
        basis = np.linalg.qr(image)[0]
    return basis
