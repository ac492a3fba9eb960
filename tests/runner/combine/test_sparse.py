"""TIES and DARE by blocks of rows: what plain numpy makes of the dense products, whatever the size of the blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backpropagate_runner.combine.low_rank import Term
from backpropagate_runner.combine.sparse import Dare, Ties, rows_of_a_block, thresholds
from backpropagate_runner.combine.streamed_svd import Rows, cut_rows
from tests.runner.combine.runs import near, random, rank_cut


def nothing() -> None: ...


def terms(count: int, outputs: int, inputs: int, r: int = 3) -> list[Term]:
    return [
        Term(1.0 + number / 4, random(outputs, r, seed=number), random(r, inputs, seed=number))
        for number in range(count)
    ]


def dense(term: Term) -> np.ndarray:
    return np.float32(term.coefficient) * (term.B @ term.A)


def whole(matrix: Rows) -> np.ndarray:
    return np.concatenate([matrix.block(start) for start in range(0, matrix.shape[0], matrix.step)])


@given(
    st.integers(1, 40), st.integers(1, 20), st.sampled_from([0.01, 0.2, 0.5, 0.99, 1.0]), st.sampled_from([1, 7, 64])
)
@settings(max_examples=40)
def test_the_threshold_is_the_size_that_the_wanted_part_reaches(
    rows: int, columns: int, density: float, step: int
) -> None:
    (term,) = terms(1, rows, columns)
    (found,) = thresholds([term], step, density, nothing)
    sizes = np.sort(np.abs(dense(term)).reshape(-1))[::-1]
    wanted = max(1, int(density * sizes.size))
    if wanted == sizes.size:
        assert found == 0
    else:
        assert found == pytest.approx(sizes[wanted - 1], rel=1e-5)


@pytest.mark.parametrize("density", [0.2, 0.7, 1.0])
@pytest.mark.parametrize("step", [16, 100])
def test_ties_is_trim_elect_and_disjoint_mean(density: float, step: int) -> None:
    given_terms = terms(3, 50, 20)
    limits = thresholds(given_terms, step, density, nothing)
    found = whole(Ties(given_terms, step, limits))
    trimmed = np.stack(
        [np.where(np.abs(dense(t)) >= limit, dense(t), 0) for t, limit in zip(given_terms, limits, strict=True)]
    )
    sign = np.where(trimmed.sum(0) >= 0, 1, -1)
    agrees = (trimmed * sign) > 0
    expected = (trimmed * agrees).sum(0) / np.maximum(agrees.sum(0), 1)
    assert np.allclose(found, expected, atol=1e-5)


def test_runs_that_agree_lose_nothing_to_ties() -> None:
    term = terms(1, 40, 20)[0]
    found = whole(Ties([term, term, term], 16, thresholds([term] * 3, 16, 1.0, nothing)))
    assert np.allclose(found, dense(term), atol=1e-5)


def test_what_dare_drops_depends_on_the_seed_and_the_module_and_not_on_the_blocks() -> None:
    given_terms = terms(2, 100, 30)
    one = whole(Dare(given_terms, 16, 0.5, 0, "up"))
    assert np.allclose(one, whole(Dare(given_terms, 48, 0.5, 0, "up")), atol=1e-6)
    for other in (Dare(given_terms, 16, 0.5, 1, "up"), Dare(given_terms, 16, 0.5, 0, "down")):
        assert not np.allclose(one, whole(other), atol=1e-2)


def test_dare_keeps_the_wanted_part_and_its_mean() -> None:
    (term,) = terms(1, 400, 300)
    found = whole(Dare([term], 64, 0.25, 0, "up"))
    assert (found != 0).mean() == pytest.approx(0.25, abs=0.01)
    assert np.allclose(found[found != 0], 4 * dense(term)[found != 0], rtol=1e-5)
    draws = np.mean([whole(Dare([term], 64, 0.25, seed, "up")) for seed in range(40)], axis=0)
    assert np.linalg.norm(draws - dense(term)) < 0.35 * np.linalg.norm(dense(term))


def test_dare_that_keeps_all_is_the_mean() -> None:
    given_terms = terms(3, 50, 20)
    found = whole(Dare(given_terms, 16, 1.0, 0, "up"))
    assert np.allclose(found, np.mean([dense(term) for term in given_terms], axis=0), atol=1e-5)


@pytest.mark.parametrize("density", [0.2, 1.0])
def test_a_narrow_matrix_is_cut_exactly(density: float) -> None:
    given_terms = terms(3, 300, 40)
    matrix = Ties(given_terms, 64, thresholds(given_terms, 64, density, nothing))
    A, B = cut_rows(matrix, 4, nothing)
    assert near(B @ A, rank_cut(whole(matrix).astype(np.float64), 4))


@pytest.mark.parametrize("make", [Ties, Dare])
def test_a_wide_matrix_is_cut_nearly_as_well_as_can_be(make: type[Ties] | type[Dare]) -> None:
    given_terms = terms(3, 400, 300, r=8)
    matrix: Rows
    if make is Ties:
        matrix = Ties(given_terms, 64, thresholds(given_terms, 64, 0.5, nothing))
    else:
        matrix = Dare(given_terms, 64, 0.5, 0, "up")
    A, B = cut_rows(matrix, 8, nothing, exact=100)
    all_of_it = whole(matrix).astype(np.float64)
    best = np.linalg.norm(all_of_it - rank_cut(all_of_it, 8))
    assert np.linalg.norm(all_of_it - B @ A) <= 1.01 * best
    again = cut_rows(matrix, 8, nothing, exact=100)
    assert np.array_equal(again[0], A)
    assert np.array_equal(again[1], B)


def test_blocks_are_whole_tiles_within_the_budget() -> None:
    assert rows_of_a_block(4096, 5, 128 << 20) % 16 == 0
    assert rows_of_a_block(4096, 5, 128 << 20) * 4096 * 4 * 16 <= 128 << 20
    assert rows_of_a_block(1 << 20, 9, 1) == 16
