"""The start of a run: rows that are orthonormal, span what they spanned, and are always the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from backpropagate_runner.combine.orthonormal import by_cholesky, by_householder, fits, orthonormal_rows
from tests.runner.combine.runs import random

shapes = st.integers(1, 12).flatmap(lambda r: st.tuples(st.just(r), st.integers(r, 40)))


def is_orthonormal(rows: NDArray[np.float32]) -> bool:
    return bool(np.allclose(rows @ rows.T, np.eye(len(rows)), atol=2e-6))


@given(shapes, st.integers(0, 1000), st.sampled_from([1e-6, 1.0, 1e6]))
def test_the_rows_are_orthonormal_and_span_the_same_space(shape: tuple[int, int], seed: int, size: float) -> None:
    A = random(*shape, seed=seed) * np.float32(size)
    found = orthonormal_rows(A)
    assert found.rows.dtype == np.float32
    assert found.rows.shape == A.shape
    assert found.dependent == 0
    assert is_orthonormal(found.rows)
    assert np.linalg.norm(A - A @ found.rows.T @ found.rows) < 1e-5 * np.linalg.norm(A)


@given(shapes, st.integers(0, 1000))
def test_each_row_leans_the_way_of_its_old_one(shape: tuple[int, int], seed: int) -> None:
    """A = R^T Q^T with R^T lower triangular and a positive diagonal: the factorisation with that sign is unique."""
    A = random(*shape, seed=seed)
    turned = A @ orthonormal_rows(A).rows.T
    assert np.allclose(turned, np.tril(turned), atol=1e-5)
    assert (np.diagonal(turned) > 0).all()


@given(shapes, st.integers(0, 1000))
def test_doing_it_twice_is_doing_it_once(shape: tuple[int, int], seed: int) -> None:
    once = orthonormal_rows(random(*shape, seed=seed)).rows
    assert np.allclose(orthonormal_rows(once).rows, once, atol=2e-6)


@pytest.mark.parametrize("row", [0, 2, 4])
def test_a_row_of_zeros_becomes_a_direction_and_not_a_dead_row(row: int) -> None:
    """A diagonal entry of zero counts as positive: the literal sign would make the row zero for ever."""
    A = random(5, 16)
    A[row] = 0
    found = orthonormal_rows(A)
    assert is_orthonormal(found.rows)
    assert found.dependent == 1


@pytest.mark.parametrize(("rows", "dependent"), [([0, 1, 0], 1), ([0, 0, 0], 2), ([0, 1, 2], 0)])
def test_rows_that_repeat_others_are_counted_and_replaced(rows: list[int], dependent: int) -> None:
    found = orthonormal_rows(random(3, 16)[rows])
    assert found.dependent == dependent
    assert is_orthonormal(found.rows)


def test_an_adapter_of_zeros_still_gets_directions() -> None:
    found = orthonormal_rows(np.zeros((3, 8), np.float32))
    assert found.dependent == 3
    assert is_orthonormal(found.rows)


def test_as_many_rows_as_inputs_fit_and_more_do_not() -> None:
    assert fits((8, 8))
    assert is_orthonormal(orthonormal_rows(random(8, 8)).rows)
    assert not fits((9, 8))


@given(shapes, st.integers(0, 1000))
def test_both_ways_lead_to_the_same_rows(shape: tuple[int, int], seed: int) -> None:
    A = random(*shape, seed=seed)
    quick, (slow, _) = by_cholesky(A), by_householder(A)
    if quick is not None:
        assert np.allclose(quick, slow, atol=1e-6)
        assert np.allclose(quick @ quick.T, np.eye(len(A)), atol=1e-14)


def test_rows_that_nearly_depend_take_the_slow_way() -> None:
    A = random(4, 32)
    A[3] = A[0] + np.float32(1e-6) * A[3]
    assert by_cholesky(random(4, 32)) is not None
    assert by_cholesky(A) is None
    assert is_orthonormal(orthonormal_rows(A).rows)
