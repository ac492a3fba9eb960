"""The scores of a campaign and what they come to: by hand for one case, and as laws for any."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backpropagate.events import LinkScored
from backpropagate.judge.forgetting import (
    Cell,
    Matrix,
    comparable_losses,
    forgetting,
    matrix,
    pick,
    should_stop,
    standing,
)
from backpropagate.measured import LinkScore

_SHARE = st.floats(0, 1)
_LOSS = st.floats(0, 20)


def scored(link: int, *scores: tuple[str, int, float, float]) -> LinkScored:
    told = tuple(LinkScore(name, task, loss, accuracy, 100, 10) for name, task, accuracy, loss in scores)
    return LinkScored(time=0.0, run_id="c", link=link, scores=told)


def whole(accuracies: list[list[float]]) -> Matrix:
    """Row by row, run 1 first; the loss is what is wrong."""
    rows = {i: {t: Cell(a, 1 - a) for t, a in enumerate(row)} for i, row in enumerate(accuracies, 1)}
    return Matrix(rows, tuple(range(len(accuracies))))


@st.composite
def campaigns(draw: st.DrawFn, holes: bool = False) -> Matrix:
    runs = draw(st.integers(1, 6))
    cell = st.builds(Cell, _SHARE, _LOSS)
    rows = {
        run: {task: draw(cell) for task in range(run) if not holes or draw(st.booleans())} for run in range(1, runs + 1)
    }
    return Matrix(rows, tuple(range(runs)))


def test_every_number_as_counted_by_hand() -> None:
    found = forgetting(whole([[0.8], [0.6, 0.9], [0.7, 0.5, 0.6]]), 3)
    assert found.average_accuracy == pytest.approx(0.6)
    assert found.average_loss == pytest.approx(0.4)
    assert found.backward_transfer == pytest.approx(((0.7 - 0.8) + (0.5 - 0.9)) / 2)
    assert found.backward_loss == pytest.approx(0.25)
    assert found.forgetting == pytest.approx(((0.8 - 0.7) + (0.9 - 0.5)) / 2)
    assert found.learning == pytest.approx((0.8 + 0.9 + 0.6) / 3)
    assert found.worst is not None
    assert (found.worst.task, found.worst.cell.accuracy) == (1, 0.5)
    assert found.missing == ()


def test_the_best_before_counts_for_forgetting_and_the_first_for_backward_transfer() -> None:
    found = forgetting(whole([[0.5], [0.9, 0.5], [0.6, 0.5, 0.5]]), 3)
    assert found.backward_transfer == pytest.approx(0.05)
    assert found.forgetting == pytest.approx(0.15)


def test_after_the_first_run_there_is_nothing_to_forget() -> None:
    found = forgetting(whole([[0.8]]), 1)
    assert (found.backward_transfer, found.forgetting) == (None, None)
    assert (found.average_accuracy, found.learning) == (0.8, 0.8)


@given(campaigns())
def test_the_average_is_what_was_learnt_and_what_came_or_went_since(scores: Matrix) -> None:
    n = len(scores.tasks)
    found = forgetting(scores, n)
    assert found.average_accuracy is not None
    assert found.learning is not None
    since = (found.backward_transfer or 0.0) * (n - 1) / n
    assert math.isclose(found.average_accuracy, found.learning + since, abs_tol=1e-9)


@given(campaigns(holes=True))
def test_forgetting_is_never_less_than_what_backward_transfer_says(scores: Matrix) -> None:
    whole_rows = Matrix({i: r for i, r in scores.rows.items() if len(r) == i}, scores.tasks)
    n = len(scores.tasks)
    found = forgetting(whole_rows, n)
    if found.forgetting is not None and found.backward_transfer is not None and len(whole_rows.runs) == n:
        assert found.forgetting >= -found.backward_transfer - 1e-12


@given(campaigns(holes=True))
def test_missing_cells_are_told_and_never_break_a_number(scores: Matrix) -> None:
    n = len(scores.tasks)
    found = forgetting(scores, n)
    there = {(run, task) for run, row in scores.rows.items() for task in row}
    assert set(found.missing) == {(i, t) for i in range(1, n + 1) for t in range(i)} - there
    assert (found.average_accuracy is None) == (not scores.rows[n])
    for value in (found.average_accuracy, found.learning):
        assert value is None or 0 <= value <= 1
    for value in (found.backward_transfer, found.forgetting):
        assert value is None or -1 <= value <= 1


@given(campaigns())
def test_the_order_in_which_scores_are_told_changes_nothing(scores: Matrix) -> None:
    told = [
        scored(run, *(("merged", task, cell.accuracy, cell.loss) for task, cell in row.items()))
        for run, row in scores.rows.items()
    ]
    turned = [LinkScored(time=0.0, run_id="c", link=e.link, scores=e.scores[::-1]) for e in reversed(told)]
    n = len(scores.tasks)
    assert forgetting(matrix(told, "merged"), n) == forgetting(matrix(turned, "merged"), n)


def test_a_cell_that_was_scored_again_is_the_later_one() -> None:
    scores = matrix([scored(1, ("merged", 0, 0.1, 3.0)), scored(1, ("merged", 0, 0.2, 2.0))], "merged")
    assert scores.cell(1, 0) == Cell(0.2, 2.0, 100, 10)


def test_numbers_that_are_none_are_no_scores() -> None:
    scores = matrix([scored(1, ("merged", 0, 0.1, math.nan), ("newest", 0, 0.3, 1.0))], "merged")
    assert scores.runs == ()
    assert forgetting(scores, 1).average_accuracy is None


def test_a_run_without_held_out_rows_teaches_no_task() -> None:
    scores = Matrix({1: {0: Cell(0.8, 1)}, 2: {0: Cell(0.7, 1)}, 3: {0: Cell(0.6, 1), 2: Cell(0.9, 1)}}, (0, 2))
    after_two, after_three = forgetting(scores, 2), forgetting(scores, 3)
    assert after_two.average_accuracy == 0.7
    assert after_two.backward_transfer == pytest.approx(-0.1)
    assert after_three.backward_transfer == pytest.approx(-0.2)
    assert after_three.learning == pytest.approx(0.85)
    assert after_three.missing == ()


def test_what_a_later_task_scores_is_left_out() -> None:
    scores = whole([[0.8, 0.1], [0.8, 0.9]])
    assert forgetting(scores, 1).average_accuracy == 0.8


@given(st.lists(st.one_of(st.none(), _LOSS), max_size=12))
def test_without_patience_a_campaign_is_never_ended(history: list[float | None]) -> None:
    assert not should_stop(history, 0)


@given(st.lists(_LOSS, min_size=1, max_size=12), st.integers(1, 4))
def test_a_new_best_never_ends_it(history: list[float], patience: int) -> None:
    assert not should_stop([*history, min(history) - 1], patience)


@given(st.lists(_LOSS, min_size=1, max_size=12), st.integers(1, 4))
def test_patience_runs_out_exactly_then(history: list[float], patience: int) -> None:
    best = min(history)
    grown = [*history, best - 1, *[best] * (patience - 1)]
    assert not should_stop(grown, patience)
    assert should_stop([*grown, best], patience)


@given(st.lists(_LOSS, max_size=8), st.integers(0, 8), st.integers(1, 4))
def test_a_run_that_was_not_scored_says_nothing(history: list[float], at: int, patience: int) -> None:
    assert should_stop([*history[:at], None, *history[at:]], patience) == should_stop(history, patience)


def test_a_loss_that_is_no_number_is_no_improvement() -> None:
    assert should_stop([1.0, math.nan], 1)


def test_a_harder_new_task_is_not_taken_for_a_step_back() -> None:
    merged = matrix([scored(1, ("merged", 0, 0.5, 1.0)), scored(2, ("merged", 0, 0.5, 1.0), ("merged", 1, 0.2, 4.0))], "merged")  # fmt: skip
    base = matrix([scored(2, ("base", 0, 0.1, 2.0), ("base", 1, 0.1, 6.0))], "base")
    assert comparable_losses(merged, base) == [-1.0, -1.5]
    assert comparable_losses(merged, matrix([scored(1, ("base", 0, 0.1, 2.0))], "base")) == [1.0, 2.5]


def test_the_better_average_wins_and_the_loss_decides_between_equals() -> None:
    rules = {
        "slao": {0: Cell(0.6, 1.0), 1: Cell(0.6, 1.0)},
        "ties": {0: Cell(0.9, 0.9), 1: Cell(0.3, 0.9)},
        "ema": {0: Cell(0.5, 0.1), 1: Cell(0.5, 0.1)},
    }
    assert pick(rules) == "ties"
    assert pick({**rules, "ties": {0: Cell(0.9, 1.1), 1: Cell(0.3, 1.1)}}) == "slao"
    assert pick({"a": rules["slao"], "b": rules["slao"]}) == "a"


def test_a_merge_that_learnt_nothing_is_not_chosen_for_forgetting_nothing() -> None:
    """Its backward transfer is the best there can be."""
    still, learns = whole([[0.4], [0.4, 0.4]]), whole([[0.9], [0.6, 0.9]])
    forgot = forgetting(learns, 2).backward_transfer
    assert forgetting(still, 2).backward_transfer == 0.0
    assert forgot is not None
    assert forgot < 0
    assert pick({"still": still.row(2), "learns": learns.row(2)}) == "learns"


def test_only_what_all_rules_were_scored_on_is_compared() -> None:
    assert pick({"a": {0: Cell(0.5, 1.0)}, "b": {0: Cell(0.4, 1.0), 1: Cell(1.0, 0.0)}, "c": {}}) == "a"


@pytest.mark.parametrize("rules", [{}, {"a": {}}, {"a": {0: Cell(1.0, 0.0)}, "b": {1: Cell(1.0, 0.0)}}])
def test_where_nothing_can_be_compared_nothing_is_chosen(rules: dict[str, dict[int, Cell]]) -> None:
    with pytest.raises(ValueError, match="no "):
        pick(rules)


@given(st.dictionaries(st.integers(0, 5), st.builds(Cell, _SHARE, _LOSS), min_size=1))
def test_the_worst_is_never_above_the_average(row: dict[int, Cell]) -> None:
    at = standing(row)
    assert at is not None
    assert at.worst.cell.accuracy <= at.average_accuracy + 1e-12
    assert at.tasks == len(row)
    assert standing({}) is None
