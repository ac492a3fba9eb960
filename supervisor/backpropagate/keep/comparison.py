"""Two runs side by side: what was asked for, what came out, and the losses on the way. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from backpropagate.keep.differences import Difference, differences
from backpropagate.keep.record import RunRow
from backpropagate_protocol.campaign_report import CampaignReport
from backpropagate_protocol.spec import RunSpec

Loss = tuple[int, float]  # step, loss
# What came out, in the order in which it is told; equal ones are told too, since that they are equal is news.
_OUTCOME = (
    "status", "steps", "total_steps", "samples_seen", "final_loss", "duration_seconds", "recoveries", "backend", "device",
    "dataset_digest",
)  # fmt: skip
_HELD_OUT = ("best_loss", "best_step", "stopped_early")
_SCORES = ("average_accuracy", "average_loss", "backward_transfer", "forgetting", "worst_accuracy")


@dataclass(frozen=True, slots=True)
class Side:
    """All there is to know of one run. `report`: of a campaign that was scored."""

    spec: RunSpec
    row: RunRow
    report: CampaignReport | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """One thing that came out of both."""

    name: str
    first: object
    second: object

    @property
    def same(self) -> bool:
        return self.first == self.second


@dataclass(frozen=True, slots=True)
class Comparison:
    """asked: settings that differ. came_out: results, equal or not. packages: versions that differ.

    losses: (step, of the first, of the second) at some steps; None where a run has none near.
    same_samples: both saw the same rows in the same order; None: not known, since one did not get to its end.
    """

    asked: tuple[Difference, ...]
    came_out: tuple[Outcome, ...]
    packages: tuple[Difference, ...]
    losses: tuple[tuple[int, float | None, float | None], ...]
    same_samples: bool | None


def compare(first: Side, second: Side, points: int = 10) -> Comparison:
    """points: at how many steps the losses are set side by side, at most."""
    outcomes = [Outcome(name, getattr(first.row, name), getattr(second.row, name)) for name in _OUTCOME]
    if first.row.eval_history or second.row.eval_history:
        outcomes += [Outcome(name, getattr(first.row, name), getattr(second.row, name)) for name in _HELD_OUT]
    scores = [Outcome(name, _score(first, name), _score(second, name)) for name in _SCORES]
    outcomes += [score for score in scores if score.first is not None or score.second is not None]
    names = sorted({*first.row.packages, *second.row.packages})
    packages = (Difference(name, first.row.packages.get(name), second.row.packages.get(name)) for name in names)
    return Comparison(
        asked=tuple(differences(first.spec, second.spec)),
        came_out=tuple(outcomes),
        packages=tuple(each for each in packages if each.first != each.second),
        losses=tuple(side_by_side(first.row.loss_history, second.row.loss_history, points)),
        same_samples=_same_samples(first.row, second.row),
    )


def _score(side: Side, name: str) -> object:
    return getattr(side.report.totals[-1], name) if side.report is not None and side.report.totals else None


def _same_samples(first: RunRow, second: RunRow) -> bool | None:
    if not (first.status == second.status == "completed") or not (first.order and second.order):
        return None
    return (first.order, first.samples_seen) == (second.order, second.samples_seen)


def side_by_side(
    first: Sequence[Loss], second: Sequence[Loss], points: int
) -> list[tuple[int, float | None, float | None]]:
    """At most `points` steps, evenly spread over the longer run; of each run its last known loss since the step before."""
    last = max([step for step, _ in (*first[-1:], *second[-1:])], default=0)
    if not last:
        return []
    count = min(points, last)
    steps = sorted({max(1, round(last * (i + 1) / count)) for i in range(count)})
    found, before = [], 0
    for step in steps:
        pair = _within(first, before, step), _within(second, before, step)
        if pair != (None, None):
            found.append((step, *pair))
        before = step
    return found


def _within(losses: Sequence[Loss], after: int, upto: int) -> float | None:
    """The last of the losses at the steps after+1 … upto."""
    place = bisect_right(losses, upto, key=lambda point: point[0])
    return losses[place - 1][1] if place and losses[place - 1][0] > after else None
