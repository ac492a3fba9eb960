"""A sum of products cut to rank r without ever forming it: the nearest matrix of rank r to sum_t c_t B_t A_t.

With X = [c_1 B_1 | c_2 B_2 | …] of shape (outputs, k) and Y = [A_1; A_2; …] of shape (k, inputs), k the ranks together, the
sum is X Y. Only triangles of the two are needed:

    X = Qx Rx,  Y^T = Qy Ry       Q with orthonormal columns, R at most (k, k)
    Rx Ry^T = U S V^T             so that X Y = (Qx U) S (Qy V)^T is the sum's own singular value decomposition
    B = X Ry^T V_r S_r^(-1/2)     which is Qx U_r S_r^(1/2)
    A = S_r^(-1/2) U_r^T Rx Y     which is S_r^(1/2) (Qy V_r)^T

R comes from blocks of rows, each stacked under the R of those before it, so that beside the factors themselves no more than
a few (k, k) matrices and one block are held, all in float64. By Eckart and Young no other B A of rank r is nearer.
Singular vectors have no sign of their own: each row of A has its largest entry positive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backpropagate_protocol.errors import SLAOMergeError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

_BLOCK = 1 << 20  # bytes of float64 in a block of rows, but at least twice as many rows as columns


@dataclass(frozen=True, slots=True)
class Term:
    """coefficient x B A, with B of shape (outputs, r) and A (r, inputs)."""

    coefficient: float
    B: F32
    A: F32


def cut(terms: Sequence[Term], r: int) -> tuple[F32, F32]:
    """(A, B) of rank at most r, as (r, inputs) and (outputs, r); what is missing to r is zero. Raises SLAOMergeError."""
    outputs, inputs = terms[0].B.shape[0], terms[0].A.shape[1]
    k = sum(term.A.shape[0] for term in terms)
    step = max(2 * k, _BLOCK // (8 * k))

    def X(start: int) -> F64:
        stop = min(start + step, outputs)
        return np.concatenate([term.B[start:stop].astype(np.float64) * term.coefficient for term in terms], axis=1)

    def Yt(start: int) -> F64:
        stop = min(start + step, inputs)
        return np.concatenate([term.A[:, start:stop].T.astype(np.float64) for term in terms], axis=1)

    Rx = triangle(X(start) for start in range(0, outputs, step))
    Ry = triangle(Yt(start) for start in range(0, inputs, step))
    U, S, Vt = svd(Rx @ Ry.T)
    noise = 8 * np.finfo(np.float64).eps * float(np.linalg.norm(Rx)) * float(np.linalg.norm(Ry))
    kept = min(r, int((noise < S).sum()))
    roots = np.sqrt(S[:kept])
    to_B = Ry.T @ (Vt[:kept].T / roots)  # (k, kept)
    to_A = Rx.T @ (U[:, :kept] / roots)  # (k, kept)
    B = _filled(outputs, r, step, lambda start: X(start) @ to_B)
    At = _filled(inputs, r, step, lambda start: Yt(start) @ to_A)
    return with_signs(np.ascontiguousarray(At.T), B)


def triangle(blocks: Iterable[F64]) -> F64:
    """R of the blocks' rows, one below the other: (k, k), or fewer rows where there are fewer than k."""
    R: F64 | None = None
    for block in blocks:
        stacked = block if R is None else np.concatenate([R, block])
        try:
            R = np.asarray(np.linalg.qr(stacked, mode="r"))
        except np.linalg.LinAlgError as error:
            raise SLAOMergeError(f"the factors cannot be decomposed: {error}") from error
    assert R is not None
    return R


def svd(matrix: F64) -> tuple[F64, F64, F64]:
    """U, S, V^T. Raises SLAOMergeError where it does not converge."""
    try:
        U, S, Vt = np.linalg.svd(matrix, full_matrices=False)
    except np.linalg.LinAlgError as error:
        raise SLAOMergeError(f"the product cannot be decomposed: {error}") from error
    return U, S, Vt


def with_signs(A: F32, B: F32) -> tuple[F32, F32]:
    """The same product, each row of A with its largest entry positive."""
    largest = np.abs(A).argmax(axis=1)
    signs = np.where(A[np.arange(len(A)), largest] < 0, np.float32(-1), np.float32(1))
    return A * signs[:, None], B * signs


def _filled(rows: int, r: int, step: int, made: Callable[[int], F64]) -> F32:
    out = np.zeros((rows, r), np.float32)
    for start in range(0, rows, step):
        block = made(start)
        out[start : start + len(block), : block.shape[1]] = block
    return out
