"""Which scores of a run count, when some of its steps were done twice."""

from __future__ import annotations

from backpropagate.events import AttemptStarted, Evaluation, Event
from backpropagate.judge.held_out import Scores


def score(step: int, loss: float, best: bool = False) -> Evaluation:
    return Evaluation(time=0.0, run_id="a", step=step, loss=loss, rows=4, tokens=40, seconds=0.1, best=best)


def attempt(number: int, step: int) -> AttemptStarted:
    return AttemptStarted(time=0.0, run_id="a", attempt=number, pid=1, micro_batch=8, accumulation=1, resume_step=step)


def told(*events: Event) -> Scores:
    scores = Scores()
    for event in events:
        scores.see(event)
    return scores


def test_before_the_first_there_is_no_best() -> None:
    assert (told(attempt(1, 0)).points, told().best) == ([], None)


def test_the_best_is_the_last_that_was_better_than_those_before() -> None:
    scores = told(score(2, 3.0, best=True), score(4, 2.0, best=True), score(6, 2.5))
    assert (scores.points, scores.best) == ([(2, 3.0), (4, 2.0), (6, 2.5)], (4, 2.0))


def test_what_was_scored_after_the_step_of_a_resume_is_forgotten_until_it_is_scored_again() -> None:
    before = (score(2, 3.0, best=True), score(4, 2.0, best=True), attempt(2, 3))
    assert (told(*before).points, told(*before).best) == ([(2, 3.0)], (2, 3.0))
    assert told(*before, score(4, 2.1, best=True)).best == (4, 2.1)


def test_a_score_that_the_resume_made_up_for_belongs_to_the_step_of_its_checkpoint() -> None:
    assert told(score(2, 3.0, best=True), attempt(2, 4), score(4, 2.0, best=True)).points == [(2, 3.0), (4, 2.0)]
