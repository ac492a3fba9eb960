"""Products cut to a rank: as the dense decomposition cuts them, never having been dense."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backpropagate_runner.combine.low_rank import Term, cut
from tests.runner.combine.runs import near, random, rank_cut


def terms(ranks: list[int], outputs: int, inputs: int, seed: int = 0) -> list[Term]:
    return [
        Term(
            (-1) ** number / (number + 1.5),
            random(outputs, r, seed=seed + number),
            random(r, inputs, seed=seed + number),
        )
        for number, r in enumerate(ranks)
    ]


def dense(terms: list[Term]) -> np.ndarray:
    return sum((t.coefficient * t.B.astype(np.float64) @ t.A for t in terms), start=np.zeros(()))


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(1, 8),
    st.integers(0, 99),
)
@settings(max_examples=60)
def test_it_is_the_dense_decomposition_cut(ranks: list[int], outputs: int, inputs: int, r: int, seed: int) -> None:
    """Also where the factors together have more columns than the matrix, or fewer than r."""
    given_terms = terms(ranks, outputs, inputs, seed)
    A, B = cut(given_terms, r)
    expected = rank_cut(dense(given_terms), r)
    assert A.shape == (r, inputs)
    assert B.shape == (outputs, r)
    assert A.dtype == B.dtype == np.float32
    assert np.linalg.norm(B @ A - expected) < 1e-5 * np.linalg.norm(dense(given_terms))


def test_matrices_of_many_blocks_are_cut_like_small_ones() -> None:
    wide = terms([8, 8], 40_000, 300)
    A, B = cut(wide, 8)
    u, s, vt = np.linalg.svd(
        np.linalg.qr(np.hstack([wide[0].B * wide[0].coefficient, wide[1].B * wide[1].coefficient]))[1]
        @ np.vstack([wide[0].A, wide[1].A]),
        full_matrices=False,
    )
    assert np.linalg.norm(A, axis=1) == pytest.approx(np.sqrt(s[:8]), rel=1e-4)
    assert near(np.abs(A / np.sqrt(s[:8, None])), np.abs(vt[:8]), 1e-3)
    assert np.linalg.norm(B, axis=0) == pytest.approx(np.sqrt(s[:8]), rel=1e-4)
    assert u.shape == (16, 16)


def test_a_product_of_lower_rank_is_kept_whole_and_filled_with_zeros() -> None:
    term = terms([2], 20, 16)
    A, B = cut([*term, *term], 5)
    assert near(B @ A, 2 * dense(term))
    assert not A[2:].any()
    assert not B[:, 2:].any()


def test_what_cancels_out_leaves_nothing() -> None:
    (term,) = terms([3], 20, 16)
    A, B = cut([term, Term(-term.coefficient, term.B, term.A)], 3)
    assert np.abs(B @ A).max() < 1e-6


def test_the_two_sides_share_the_size_and_the_signs_are_settled() -> None:
    A, B = cut(terms([4, 4], 30, 24), 4)
    assert np.linalg.norm(A, axis=1) == pytest.approx(np.linalg.norm(B, axis=0), rel=1e-5)
    largest = np.abs(A).argmax(axis=1)
    assert (A[np.arange(4), largest] > 0).all()
