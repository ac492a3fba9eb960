"""Windows, held-out rows and replayed portions: computed from the numbers of rows alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backpropagate.wishes.campaign_data import Window, chosen_holdout, cut, evenly, replayed, task_names
from backpropagate_protocol.errors import InvalidSettingError
from backpropagate_protocol.spec import DataSpec, Portion


def test_a_long_file_gives_each_run_as_many_rows_as_were_asked_for() -> None:
    assert cut(100, 3, 20) == [Window(0, 20), Window(20, 20), Window(40, 20)]


def test_a_short_file_is_cut_evenly() -> None:
    assert cut(11, 3, 20) == [Window(0, 4), Window(4, 4), Window(8, 3)]


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 400))
def test_windows_follow_one_another_and_use_what_there_is(runs: int, samples: int, more: int) -> None:
    rows = runs + more
    windows = cut(rows, runs, samples)

    assert [w.start for w in windows] == [sum(w.size for w in windows[:i]) for i in range(runs)]
    assert sum(w.size for w in windows) == min(rows, runs * samples)
    assert max(w.size for w in windows) - min(w.size for w in windows) <= 1


@given(st.integers(0, 60), st.integers(1, 60), st.integers(2, 20))
def test_held_out_rows_are_counted_as_they_are_chosen(start: int, size: int, holdout: int) -> None:
    chosen = [position for position in range(start, start + size) if position % holdout == holdout - 1]

    assert Window(start, size).held_out(holdout) == len(chosen)
    assert Window(start, size).trained(holdout) == size - len(chosen)


def test_small_runs_hold_out_one_row_or_none() -> None:
    assert chosen_holdout(20, [Window(0, 100)], explicit=False) == 20
    assert chosen_holdout(20, [Window(0, 8), Window(8, 7)], explicit=False) == 7
    assert chosen_holdout(20, [Window(0, 3)], explicit=False) == 0


def test_every_run_of_a_short_file_has_a_held_out_row() -> None:
    windows = cut(38, 5, 1000)
    holdout = chosen_holdout(20, windows, explicit=False)

    assert all(window.held_out(holdout) == 1 for window in windows)


@pytest.mark.parametrize(("wished", "size"), [(1, 100), (20, 12), (3, 2)])
def test_a_holdout_that_holds_out_all_or_nothing_is_refused(wished: int, size: int) -> None:
    with pytest.raises(InvalidSettingError, match="--holdout"):
        chosen_holdout(wished, [Window(0, size)], explicit=True)


@given(st.integers(0, 200), st.lists(st.integers(0, 30), max_size=8))
def test_shares_are_even_as_far_as_there_is_enough(wanted: int, there: list[int]) -> None:
    shares = evenly(wanted, there)

    assert sum(shares) == min(wanted, sum(there))
    assert all(0 <= share <= most for share, most in zip(shares, there, strict=True))
    largest = max(shares, default=0)
    assert all(share >= largest - 1 for share, most in zip(shares, there, strict=True) if share < most)


def test_a_share_of_what_a_run_sees_is_earlier_rows() -> None:
    earlier = [DataSpec(source="/a.jsonl", start=0, samples=100, holdout=20), DataSpec(source="/a.jsonl", start=100, samples=100, holdout=20)]  # fmt: skip
    windows = [Window(0, 100), Window(100, 100)]
    first, second = replayed(earlier, windows, 90, 0.1, seed=7)

    assert first == Portion(source="/a.jsonl", start=0, stop=100, take=5, seed=7)
    assert (second.start, second.stop, second.take) == (100, 200, 5)
    assert replayed(earlier, windows, 90, 0.0, seed=7) == ()
    assert replayed([], [], 90, 0.1, seed=7) == ()


def test_no_two_tasks_have_one_name() -> None:
    whole = [DataSpec(source="/here/week.jsonl.gz"), DataSpec(source="/there/week.jsonl"), DataSpec(source="me/set")]
    cut_up = [DataSpec(source="/d.csv", start=0, samples=9), DataSpec(source="/d.csv", start=9, samples=8)]

    assert task_names(whole, [Window(0, 3)] * 3) == ("week", "week (2)", "set")
    assert task_names(whole[:1], [Window(0, 3)], ("week",)) == ("week (2)",)
    assert task_names(cut_up, [Window(0, 9), Window(9, 8)]) == ("d 1-9", "d 10-17")
