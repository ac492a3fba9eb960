"""When to save: the three rules, on any sequence of step times and save costs."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from backpropagate_runner.cadence import BUDGET, RETRY_SECONDS, Cadence

seconds = st.floats(0.001, 30.0, allow_nan=False)


def test_save_steps_decides_alone() -> None:
    cadence = Cadence(5, 60.0, 12, start=0.0)
    assert [step for step in range(1, 13) if cadence.due(step, 1e9)] == [5, 10, 12]


def test_the_last_step_is_always_saved() -> None:
    assert Cadence(None, 60.0, 7, start=0.0).due(7, 0.0)


def test_a_cheap_save_comes_early_and_then_every_save_seconds() -> None:
    cadence = Cadence(None, 60.0, 10**9, start=0.0)
    saves = []
    for second in range(1, 400):
        if cadence.due(second, float(second)):
            saves.append(second)
            cadence.saved(float(second), float(second))
    assert saves[:4] == [6, 12, 24, 48]  # at most half of the work is at risk
    assert {b - a for a, b in pairwise(saves[4:])} == {60}


def test_a_failed_save_leaves_the_work_at_risk_and_is_tried_again_a_little_later() -> None:
    cadence = Cadence(None, 60.0, 10**9, start=0.0)
    assert cadence.due(1, 7.0)
    cadence.failed(7.0, 7.0)
    assert not cadence.due(2, 7.0 + RETRY_SECONDS - 0.1)
    assert cadence.due(3, 7.0 + RETRY_SECONDS)


@given(st.lists(st.tuples(seconds, seconds), min_size=1, max_size=200), st.floats(1.0, 100.0))
def test_all_saves_but_the_first_stay_in_the_budget(steps: list[tuple[float, float]], save_seconds: float) -> None:
    """Each save may cost what it likes; the decision to make one more is checked at the cost of the one before."""
    cadence = Cadence(None, save_seconds, 10**9, start=0.0)
    now = spent = cost = 0.0
    saved_before = False
    for number, (step_seconds, save_cost) in enumerate(steps, 1):
        now += step_seconds
        if cadence.due(number, now):
            assert not saved_before or spent + cost <= BUDGET * now
            cadence.saved(now, now + save_cost)
            now, spent, cost, saved_before = now + save_cost, spent + save_cost, save_cost, True


@given(st.lists(st.floats(0.001, 5.0), min_size=1, max_size=300))
def test_where_saving_is_free_no_more_than_save_seconds_and_one_step_is_at_risk(steps: list[float]) -> None:
    cadence = Cadence(None, 60.0, 10**9, start=0.0)
    now = safe = 0.0
    for number, step_seconds in enumerate(steps, 1):
        now += step_seconds
        assert now - safe <= 60.0 + step_seconds + 1e-6
        if cadence.due(number, now):
            cadence.saved(now, now)
            safe = now


def test_one_that_is_written_beside_the_training_costs_what_it_held_it_up_for_and_a_tenth_of_what_it_took() -> None:
    cadence = Cadence(None, 60.0, 10**9, start=0.0)
    assert cadence.due(1, 6.0)
    cadence.saved(6.0, 11.0, released=6.1)  # written for 5 seconds
    assert not cadence.due(2, 90.0)
    assert cadence.due(3, 100.0)


def test_while_one_is_written_only_a_wish_or_the_last_step_waits_for_it() -> None:
    assert not Cadence(None, 60.0, 10, start=0.0).due(9, 599.0, writing=True)
    assert Cadence(None, 60.0, 10, start=0.0).due(9, 600.0, writing=True)  # it may never end: under the parent's eyes
    assert Cadence(None, 60.0, 10, start=0.0).due(10, 1e9, writing=True)
    assert Cadence(5, 60.0, 10, start=0.0).due(5, 1e9, writing=True)
