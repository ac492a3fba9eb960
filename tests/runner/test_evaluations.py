"""The account of evaluations: what is due, what is best, when it is enough."""

from __future__ import annotations

import math

import msgspec
import pytest

from backpropagate_protocol.rundir import Standing
from backpropagate_protocol.spec import DataSpec, ModelSpec, RunSpec, TrainSpec, is_evaluated
from backpropagate_runner.evaluations import Evaluations


def spec(**train: object) -> RunSpec:
    return RunSpec(
        run_id="run",
        created="",
        output="/out",
        model=ModelSpec(name="toy", path="toy"),
        data=DataSpec(source="rows", holdout=5),
        train=msgspec.convert(train, TrainSpec),
    )


def due(evaluations: Evaluations, total_steps: int) -> list[int]:
    return [step for step in range(total_steps + 1) if evaluations.due(step, total_steps)]


@pytest.mark.parametrize(
    ("every", "total", "steps"),
    [
        (4, 10, [4, 8, 10]),
        (5, 10, [5, 10]),
        (50, 10, [10]),
        (None, 30, list(range(3, 31, 3))),
        (None, 7, [1, 2, 3, 4, 5, 6, 7]),
        (None, 25, [3, 6, 9, 12, 15, 18, 21, 24, 25]),
    ],
)
def test_it_is_due_every_so_many_steps_and_after_the_last(every: int | None, total: int, steps: list[int]) -> None:
    assert due(Evaluations(spec(eval_steps=every), None), total) == steps


def test_nothing_is_due_in_a_run_that_holds_nothing_out_or_whose_campaign_does_the_scoring() -> None:
    alone = spec(eval_steps=1)
    bare = msgspec.structs.replace(alone, data=DataSpec(source="rows"))
    link = msgspec.structs.replace(alone, parent="campaign")
    assert [is_evaluated(each) for each in (alone, bare, link)] == [True, False, False]
    assert due(Evaluations(bare, None), 3) == due(Evaluations(link, None), 3) == []


def test_what_is_due_is_owed_until_it_is_taken() -> None:
    account = Evaluations(spec(eval_steps=2), None)
    assert [account.owed(step, 4) for step in (1, 2)] == [False, True]
    account.take(2, 1.0)
    assert not account.owed(2, 4)
    assert account.owed(4, 4)


def test_of_equal_losses_the_earlier_stays_the_best_and_too_many_without_a_better_one_are_enough() -> None:
    account = Evaluations(spec(early_stopping=2), None)
    assert [account.take(step, loss) for step, loss in [(1, 1.0), (2, 0.5), (3, 0.5)]] == [True, True, False]
    assert not account.enough
    account.take(4, 0.7)
    assert account.enough
    assert account.standing == Standing(step=4, loss=0.7, best_step=2, best_loss=0.5, worse=2)


def test_a_better_one_begins_the_count_anew() -> None:
    account = Evaluations(spec(early_stopping=2), None)
    for step, loss in [(1, 1.0), (2, 2.0), (3, 0.9), (4, 2.0)]:
        account.take(step, loss)
    assert not account.enough


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_no_better_than_any(loss: float) -> None:
    account = Evaluations(spec(early_stopping=2, keep_best=True), None)
    assert not account.take(1, loss)
    assert account.kept_step == 0
    assert account.take(2, 5.0)
    assert not account.take(3, loss)
    assert account.kept_step == 2
    assert msgspec.json.decode(msgspec.json.encode(account.standing), type=Standing) == account.standing


def test_a_resume_counts_on_from_where_its_checkpoint_stood() -> None:
    first = Evaluations(spec(early_stopping=2), None)
    first.take(1, 1.0)
    first.take(2, 2.0)
    second = Evaluations(spec(early_stopping=2), first.standing)
    second.take(3, 3.0)
    assert second.enough


def test_a_best_one_that_no_checkpoint_could_take_gives_way_to_the_one_before() -> None:
    account = Evaluations(spec(keep_best=True, early_stopping=1), None)
    account.take(1, 1.0)
    account.take(2, 0.5)
    account.not_kept()
    assert account.standing == Standing(step=2, loss=0.5, best_step=1, best_loss=1.0, worse=0)
    assert not account.take(3, 1.5)
    assert account.kept_step == 1


def test_without_keep_best_no_checkpoint_is_needed_and_the_best_stays_what_it_was() -> None:
    account = Evaluations(spec(early_stopping=1), None)
    account.take(1, 1.0)
    account.not_kept()
    assert account.kept_step == 0
    assert account.standing is not None
    assert account.standing.best_step == 1


def test_after_the_best_is_lost_the_next_is_the_best() -> None:
    account = Evaluations(spec(keep_best=True), None)
    account.take(1, 1.0)
    account.lose_best()
    assert account.kept_step == 0
    assert account.take(2, 9.0)
