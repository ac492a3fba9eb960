"""Did it forget? Scores of every run on every task so far, and the few numbers that say what they come to. Pure.

Let a[i, t] be the score, after run i, of the campaign's adapter on the held-out rows of task t, the task that run t taught;
runs and tasks count from 1 in the formulas, and n is the newest run. Accuracies are shares in 0 … 1 (more is better), losses
are nats per token (less is better).

average accuracy    AA  = mean over t ≤ n of a[n, t]                          Lopez-Paz & Ranzato 2017 (arXiv:1706.08840), "ACC"
backward transfer   BWT = mean over t < n of a[n, t] - a[t, t]                the same paper; below 0 is forgetting
forgetting          F   = mean over t < n of max(a[i, t], t ≤ i < n) - a[n, t]   Chaudhry et al. 2018 (arXiv:1801.10112)
learning            LA  = mean over t ≤ n of a[t, t]                          Riemer et al. 2019 (arXiv:1810.11910)
worst task          the smallest a[n, t]; it is what an average hides

With all cells there AA = LA + BWT (n - 1) / n, so a method can buy a better BWT by learning less. That is why a choice between
merges is made by AA and never by BWT: a merge that changes nothing forgets nothing.

A cell that is not there (a run that could not be scored, a number that is none) is left out of every mean; a difference counts
only where both of its cells are there; a mean of nothing is None.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from backpropagate.events import LinkScored
from backpropagate.measured import LinkScore


@dataclass(frozen=True, slots=True)
class Cell:
    """One candidate on the held-out rows of one task."""

    accuracy: float
    loss: float
    tokens: int = 0
    rows: int = 0


Row = Mapping[int, Cell]  # by task, from 0


@dataclass(frozen=True, slots=True)
class Worst:
    """A task, from 0, and its score."""

    task: int
    cell: Cell


@dataclass(frozen=True, slots=True)
class Standing:
    """How one candidate stands on several tasks."""

    average_accuracy: float
    average_loss: float
    worst: Worst
    tasks: int


@dataclass(frozen=True, slots=True)
class Forgetting:
    """What a campaign comes to after its run `run`. See the head of this module for each formula."""

    run: int
    average_accuracy: float | None
    average_loss: float | None
    backward_transfer: float | None
    backward_loss: float | None  # the same in nats, turned round: above 0 is forgetting
    forgetting: float | None
    learning: float | None
    worst: Worst | None
    missing: tuple[tuple[int, int], ...]  # (run, task from 0) of cells that should be there


@dataclass(frozen=True, slots=True)
class Matrix:
    """One candidate's scores: `rows[i][t]` after run i (from 1) on task t (from 0), which run t + 1 taught.

    tasks: those with held-out rows, in order.
    """

    rows: Mapping[int, Row]
    tasks: tuple[int, ...]

    @property
    def runs(self) -> tuple[int, ...]:
        """That have at least one score, oldest first."""
        return tuple(sorted(run for run, row in self.rows.items() if row))

    def cell(self, run: int, task: int) -> Cell | None:
        return self.rows.get(run, {}).get(task)

    def tasks_by(self, run: int) -> list[int]:
        """The tasks that have been taught when `run` is over."""
        return [task for task in self.tasks if task < run]

    def row(self, run: int) -> dict[int, Cell]:
        """The scores after `run` on what was taught by then; on later tasks nobody has a say about forgetting."""
        return {task: cell for task in self.tasks_by(run) if (cell := self.cell(run, task)) is not None}


def matrix(scored: Iterable[LinkScored], candidate: str, tasks: Sequence[int] | None = None) -> Matrix:
    """A candidate's scores out of a campaign's events; of two scores for the same cell the later one counts.

    tasks: those with held-out rows; left out, those that any candidate was ever scored on.
    """
    rows: dict[int, dict[int, Cell]] = {}
    seen: set[int] = set()
    for event in scored:
        rows.setdefault(event.link, {}).update(by_candidate(event.scores).get(candidate, {}))
        seen |= {score.task for score in event.scores}
    return Matrix(rows, tuple(sorted(seen)) if tasks is None else tuple(tasks))


def by_candidate(scores: Iterable[LinkScore]) -> dict[str, dict[int, Cell]]:
    """What was said of each candidate, by task. Numbers that are none are no scores."""
    found: dict[str, dict[int, Cell]] = {}
    for score in scores:
        row = found.setdefault(score.candidate, {})
        if math.isfinite(score.loss) and math.isfinite(score.accuracy):
            row[score.task] = Cell(score.accuracy, score.loss, score.tokens, score.rows)
    return found


def standing(row: Row) -> Standing | None:
    """None for a candidate without a single score."""
    if not row:
        return None
    worst = min(row, key=lambda task: (row[task].accuracy, -row[task].loss, task))
    return Standing(
        average_accuracy=_exact_mean([cell.accuracy for cell in row.values()]),
        average_loss=_exact_mean([cell.loss for cell in row.values()]),
        worst=Worst(worst, row[worst]),
        tasks=len(row),
    )


def forgetting(scores: Matrix, run: int) -> Forgetting:
    """What the campaign comes to after `run`; None where too little is known."""
    now = standing(scores.row(run))
    both = [(before, after) for before, after, _ in _older(scores, run) if before is not None]
    tasks = scores.tasks_by(run)
    learnt = [cell for task in tasks if (cell := scores.cell(task + 1, task)) is not None]
    return Forgetting(
        run=run,
        average_accuracy=now.average_accuracy if now else None,
        average_loss=now.average_loss if now else None,
        backward_transfer=_mean([after.accuracy - before.accuracy for before, after in both]),
        backward_loss=_mean([after.loss - before.loss for before, after in both]),
        forgetting=_mean([best - after.accuracy for _, after, best in _older(scores, run) if best is not None]),
        learning=_mean([cell.accuracy for cell in learnt]),
        worst=now.worst if now else None,
        missing=tuple(
            (each, task)
            for each in range(1, run + 1)
            for task in scores.tasks_by(each)
            if scores.cell(each, task) is None
        ),
    )


def _older(scores: Matrix, run: int) -> list[tuple[Cell | None, Cell, float | None]]:
    """Of each task that an earlier run taught: just after that run, now, and the best accuracy there was before now."""
    found = []
    for task in scores.tasks_by(run):
        teacher, now = task + 1, scores.cell(run, task)
        if teacher >= run or now is None:
            continue
        before = [cell.accuracy for i in range(teacher, run) if (cell := scores.cell(i, task)) is not None]
        found.append((scores.cell(teacher, task), now, max(before, default=None)))
    return found


def comparable_losses(merged: Matrix, base: Matrix) -> list[float | None]:
    """After each scored run, the average held-out loss of the merged adapter, less that of the base on the same tasks.

    The tasks grow in number from run to run, and a new one may be harder or easier than those before: a plain average would
    tell the difficulty of the tasks rather than the progress. The base is the same throughout and takes that out. Where it was
    not scored on all of them, the plain averages are given, for all runs alike.
    """
    known: dict[int, Cell] = {}
    for run in base.runs:
        known.update(base.rows[run])
    rows = [merged.row(run) for run in merged.runs]
    shifted = all(task in known for row in rows for task in row)
    return [_mean([cell.loss - (known[task].loss if shifted else 0.0) for task, cell in row.items()]) for row in rows]


def should_stop(history: Sequence[float | None], patience: int) -> bool:
    """Whether the last `patience` scored runs all failed to come below the best loss before them; never for patience 0.

    history: the average held-out loss after each run, oldest first; None (not scored) says nothing, NaN is no improvement.
    """
    best, since = math.inf, 0
    for loss in history:
        if loss is None:
            continue
        if loss < best:
            best, since = loss, 0
        else:
            since += 1
    return 0 < patience <= since


def pick(scores_by_rule: Mapping[str, Row]) -> str:
    """The merge to deliver: the best average accuracy on held-out rows; ties go by average loss, then to the first named.

    By average accuracy and not by backward transfer, since the best backward transfer is that of a merge that never learnt
    anything (see the head of this module). Only tasks that every rule was scored on are compared; rules without any score are out.
    Raises ValueError if there is nothing to choose from.
    """
    scored = {rule: row for rule, row in scores_by_rule.items() if row}
    if not scored:
        raise ValueError("no merge has a score")
    common = set.intersection(*(set(row) for row in scored.values()))
    if not common:
        raise ValueError("no task has a score for every merge")

    def rank(rule: str) -> tuple[float, float]:
        at = standing({task: scored[rule][task] for task in sorted(common)})
        assert at is not None
        return -at.average_accuracy, at.average_loss

    return min(scored, key=rank)  # of equals, the first


def _mean(values: Sequence[float]) -> float | None:
    return _exact_mean(values) if values else None


def _exact_mean(values: Sequence[float]) -> float:
    """Rounded once: the order of the tasks does not change it."""
    return math.fsum(values) / len(values)
