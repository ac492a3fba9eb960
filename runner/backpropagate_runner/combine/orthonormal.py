"""The A that the next run begins with: the rows of the newest run's A made orthonormal, spanning the same space.

For A of shape (r, inputs) with r <= inputs:

    A^T = Q R          Q: (inputs, r) with orthonormal columns, R: (r, r) upper triangular
    Q <- Q sign(diag R) by columns, a zero counting as +1, so that diag R >= 0; for A of full rank Q is then unique
    result: Q^T        of shape (r, inputs), Q^T Q = I

The factorisation is in float64 and its result is rounded to float32: rows are orthonormal to about 4e-7. R is dropped, as in
the paper: B Q^T is another function than B A, so the loss jumps at the start of a run, and training takes it back.
Where A has fewer than r independent rows, the rows that complete the basis are arbitrary, and orthonormal all the same.

Because Q is unique, it may be computed in the quickest way. R^T is also the Cholesky factor of A A^T; dividing by it twice
(CholeskyQR2) is as good as Householder's QR wherever the first division comes near orthonormal rows, and takes half the time
and half the memory. Where it does not, QR it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backpropagate_protocol.errors import SLAOMergeError

F64 = NDArray[np.float64]

# Below this part of the largest entry of diag R, a row of A counts as depending on those before it.
DEPENDENT = 1e-6
# What the Gram matrix after the first division may differ from the identity by; the second squares it away.
_NEAR = 1e-4


@dataclass(frozen=True, slots=True)
class Orthonormal:
    rows: NDArray[np.float32]
    dependent: int  # rows of A that add nothing to those before them


def fits(shape: tuple[int, ...]) -> bool:
    """Whether as many orthonormal rows exist as A has."""
    return shape[0] <= shape[1]


def orthonormal_rows(A: NDArray[np.float32]) -> Orthonormal:
    """A of shape (r, inputs), r <= inputs. Raises SLAOMergeError."""
    assert fits(A.shape), A.shape
    quick = by_cholesky(A)
    if quick is not None:
        return Orthonormal(quick.astype(np.float32), 0)
    rows, diagonal = by_householder(A)
    sizes = np.abs(diagonal)
    largest = float(sizes.max(initial=0.0))
    dependent = int((sizes < DEPENDENT * largest).sum()) if largest else len(sizes)
    return Orthonormal(np.ascontiguousarray(rows, np.float32), dependent)


def by_cholesky(A: NDArray[np.float32]) -> F64 | None:
    """Q^T in float64; None where the rows of A are too nearly dependent for this."""
    X = A.astype(np.float64)
    gram = X @ X.T
    for _ in range(2):
        try:
            L = np.linalg.cholesky(gram)  # L L^T = X X^T, so L^-1 X has orthonormal rows
            X = np.linalg.inv(L) @ X
        except np.linalg.LinAlgError:
            return None
        gram = X @ X.T
        if not np.abs(gram - np.eye(len(X))).max(initial=0.0) < _NEAR:
            return None
    return X


def by_householder(A: NDArray[np.float32]) -> tuple[F64, F64]:
    """Q^T in float64, and diag R before its signs were turned."""
    try:
        Q, R = np.linalg.qr(A.T.astype(np.float64), mode="reduced")
    except np.linalg.LinAlgError as error:
        raise SLAOMergeError(f"the rows of A cannot be made orthonormal: {error}") from error
    diagonal = np.diagonal(R)
    Q *= np.where(diagonal < 0, -1.0, 1.0)
    return Q.T, diagonal
