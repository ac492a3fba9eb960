"""campaign.json: what a campaign's runs scored, what that comes to, and what its adapter is made of.

The parent writes it after every run, from the journal alone, so it can be made again at any time; the child draws it. Runs
count from 1, tasks from 0 (their names are in `tasks`). Accuracies are shares in 0 … 1, losses are nats per token. None: not
known. Fields only grow, each new one with a default.
"""

from __future__ import annotations

import msgspec

REPORT_SCHEMA = 1
MERGED, NEWEST, BASE = "merged", "newest", "base"  # whose scores


class RunPart(msgspec.Struct, frozen=True, kw_only=True):
    """One run of the campaign, trained. `weight`: what is left of its coefficient in the adapter that came out."""

    run: int
    name: str
    run_id: str
    adapter: str
    digest: str = ""
    steps: int = 0
    final_loss: float | None = None
    recoveries: int = 0
    seconds: float = 0.0
    rule: str = ""  # it was merged by; empty: not yet
    coefficient: float | None = None  # of this run in that merge
    weight: float | None = None
    merged_digest: str = ""


class ScoreCell(msgspec.Struct, frozen=True, kw_only=True):
    """What one candidate (merged, newest, base), as it was after `run`, said to the held-out rows of one task."""

    candidate: str
    run: int
    task: int
    accuracy: float
    loss: float
    tokens: int = 0
    rows: int = 0


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """What the merged adapter comes to after `run`; the formulas are those of the parent's judge/forgetting."""

    run: int
    average_accuracy: float | None = None
    average_loss: float | None = None
    backward_transfer: float | None = None
    backward_loss: float | None = None
    forgetting: float | None = None
    learning: float | None = None
    worst_task: int | None = None
    worst_accuracy: float | None = None
    missing: tuple[tuple[int, int], ...] = ()  # (run, task) without a score


class RuleTried(msgspec.Struct, frozen=True, kw_only=True):
    """`--merge auto`: the last run's merge by one rule, on all held-out rows."""

    rule: str
    average_accuracy: float
    average_loss: float
    worst_task: int
    worst_accuracy: float
    chosen: bool = False


class CampaignReport(msgspec.Struct, frozen=True, kw_only=True):
    """`campaign.json`. `merge` is what was asked for, `rule` what the adapter was made by."""

    schema: int = REPORT_SCHEMA
    run_id: str
    name: str | None = None
    updated: str = ""  # ISO 8601, UTC
    model: str = ""
    model_revision: str = ""
    merge: str = ""
    rule: str = ""
    floor: float = 0.0
    wanted_runs: int = 0
    runs: tuple[RunPart, ...] = ()
    tasks: tuple[str, ...] = ()  # task t is what run t + 1 trains on
    held_out: tuple[int, ...] = ()  # the tasks with rows that no run trains on
    scores: tuple[ScoreCell, ...] = ()
    totals: tuple[Totals, ...] = ()
    rules: tuple[RuleTried, ...] = ()
    adapter: str = ""  # folder of the merged adapter
    adapter_digest: str = ""

    def cell(self, candidate: str, run: int, task: int) -> ScoreCell | None:
        return next((c for c in self.scores if (c.candidate, c.run, c.task) == (candidate, run, task)), None)

    @property
    def scored_runs(self) -> tuple[int, ...]:
        """The runs after which the merged adapter was scored, oldest first."""
        return tuple(sorted({cell.run for cell in self.scores if cell.candidate == MERGED}))
