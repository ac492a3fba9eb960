"""How much each run counts: the coefficients, what they come to, and numbers that are refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backpropagate_protocol.errors import UserInputError
from backpropagate_protocol.jobs import CombineJob
from backpropagate_runner.combine.rules import Rule, Wishes, closed_form


def wishes(rule: str, **given: float) -> Wishes:
    floor, weight, density = (
        given.get(name, default) for name, default in (("floor", 0), ("weight", 0.5), ("density", 1))
    )
    return Wishes.of(CombineJob(adapters=("a",), out="o", rule=rule, floor=floor, weight=weight, density=density))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("slao", [1, 1 / math.sqrt(2), 1 / math.sqrt(3), 0.5]),
        ("slao-product", [1, 1 / math.sqrt(2), 1 / math.sqrt(3), 0.5]),
        ("ema", [1, 0.5, 0.5, 0.5]),
        ("average", [1, 1 / 2, 1 / 3, 1 / 4]),
        ("ties", [1, 1 / 2, 1 / 3, 1 / 4]),
        ("dare", [1, 1 / 2, 1 / 3, 1 / 4]),
        ("none", [1, 1, 1, 1]),
    ],
)
def test_each_rule_has_its_schedule(rule: str, expected: list[float]) -> None:
    assert wishes(rule).coefficients(4) == pytest.approx(expected)


@pytest.mark.parametrize("rule", ["slao", "slao-product", "ema", "average"])
def test_the_newest_run_never_counts_for_less_than_the_floor(rule: str) -> None:
    found = wishes(rule, floor=0.6, weight=0.2).coefficients(9)
    assert found[0] == 1
    assert min(found) == 0.6


def test_five_runs_of_slao_have_the_weights_of_the_closed_form() -> None:
    weights = closed_form(wishes("slao").coefficients(5))
    assert weights == pytest.approx([0.0341, 0.0825, 0.1594, 0.2764, 0.4472], abs=2e-3)


@given(st.sampled_from(list(Rule)), st.integers(1, 60), st.floats(0, 1), st.floats(0.01, 1))
def test_weights_are_shares(rule: Rule, runs: int, floor: float, weight: float) -> None:
    coefficients = wishes(rule, floor=floor, weight=weight).coefficients(runs)
    weights = closed_form(coefficients)
    assert coefficients[0] == 1
    assert math.isclose(sum(weights), 1)
    assert min(weights) >= 0
    assert weights[-1] == coefficients[-1]


def test_an_average_weighs_all_alike() -> None:
    assert closed_form(wishes("average").coefficients(7)) == pytest.approx([1 / 7] * 7)


def test_the_newest_increment_counts_the_coefficient_and_the_oldest_almost_wholly() -> None:
    """In increments the weights are sums from behind: the price of SLAO is paid by what was learnt last."""
    weights = closed_form(wishes("slao").coefficients(52))
    increments = np.cumsum(weights[::-1])[::-1]
    assert increments[-1] == pytest.approx(1 / math.sqrt(52))
    assert increments[0] == pytest.approx(1)
    assert increments[5] > 0.99
    assert all(np.diff(increments) <= 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rule": "soup"},
        {"rule": "auto"},
        {"floor": -0.1},
        {"floor": 1.5},
        {"floor": math.nan},
        {"weight": 0.0},
        {"weight": 1.01},
        {"density": 0.0},
        {"density": math.nan},
        {"adapters": ()},
    ],
    ids=str,
)
def test_a_wish_that_means_nothing_is_refused(wrong: dict[str, object]) -> None:
    job = {"adapters": ("a",), "out": "o", "rule": "slao", **wrong}
    with pytest.raises(UserInputError) as caught:
        Wishes.of(CombineJob(**job))  # type: ignore[arg-type]
    assert caught.value.code == "INPUT_VALIDATION_FAILED"
