"""A campaign's report: made from its wishes and its journal, kept as campaign.json."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from backpropagate.events import LinkScored
from backpropagate.judge.campaign import BY_RULE, Facts, base_model, wishes
from backpropagate.judge.forgetting import Cell, Forgetting, Matrix, by_candidate, forgetting, matrix, standing
from backpropagate.keep.record import finite, iso
from backpropagate_protocol import durable
from backpropagate_protocol.campaign_report import (
    BASE,
    MERGED,
    NEWEST,
    CampaignReport,
    RuleTried,
    RunPart,
    ScoreCell,
    Totals,
)
from backpropagate_protocol.combined import COMBINED, Combined
from backpropagate_protocol.rundir import RunDir
from backpropagate_protocol.spec import RunSpec


def make(spec: RunSpec, facts: Facts, combined: Combined | None = None) -> CampaignReport:
    """The report of the campaign as far as it has come. Pure.

    combined: what the newest merge left beside its adapter; without it the runs' weights are not known.
    """
    scored = [facts.scored[run] for run in sorted(facts.scored)]
    held_out = tuple(link.number - 1 for link in facts.links if link.data.holdout > 0)
    merged = matrix(scored, MERGED, held_out)
    last = facts.merged[facts.last] if facts.merged else None
    told = [*facts.trained.values(), *facts.merged.values(), *facts.scored.values()]
    return CampaignReport(
        run_id=spec.run_id,
        name=spec.name,
        updated=iso(max(event.time for event in told)) if told else "",
        model=spec.model.name,
        model_revision=base_model(spec, facts).revision or "",
        merge=wishes(spec).merge,
        rule=last.rule if last else "",
        floor=wishes(spec).floor,
        wanted_runs=len(facts.links),
        runs=_parts(facts, combined),
        tasks=tuple(link.name for link in facts.links),
        held_out=held_out,
        scores=tuple(
            cell for whose in (MERGED, NEWEST, BASE) for cell in _cells(whose, matrix(scored, whose, held_out))
        ),
        totals=tuple(_totals(forgetting(merged, run)) for run in merged.runs),
        rules=_rules(scored, last.rule if last and last.chosen else None),
        adapter=last.folder if last else "",
        adapter_digest=last.digest if last else "",
    )


def _parts(facts: Facts, combined: Combined | None) -> tuple[RunPart, ...]:
    weights = [run.weight for run in combined.runs] if combined else []
    parts = []
    for number, link in sorted(facts.trained.items()):
        merge = facts.merged.get(number)
        parts.append(
            RunPart(
                run=number,
                name=link.name,
                run_id=link.link_run,
                adapter=link.adapter,
                digest=link.digest,
                steps=link.steps,
                final_loss=finite(link.final_loss),
                recoveries=link.recoveries,
                seconds=link.seconds,
                rule=merge.rule if merge else "",
                coefficient=finite(merge.coefficient) if merge else None,
                weight=weights[number - 1] if number <= len(weights) else None,
                merged_digest=merge.digest if merge else "",
            )
        )
    return tuple(parts)


def _cells(candidate: str, scores: Matrix) -> list[ScoreCell]:
    return [
        ScoreCell(
            candidate=candidate,
            run=run,
            task=task,
            accuracy=cell.accuracy,
            loss=cell.loss,
            tokens=cell.tokens,
            rows=cell.rows,
        )
        for run in scores.runs
        for task, cell in sorted(scores.row(run).items())
    ]


def _totals(found: Forgetting) -> Totals:
    return Totals(
        run=found.run,
        average_accuracy=found.average_accuracy,
        average_loss=found.average_loss,
        backward_transfer=found.backward_transfer,
        backward_loss=found.backward_loss,
        forgetting=found.forgetting,
        learning=found.learning,
        worst_task=found.worst.task if found.worst else None,
        worst_accuracy=found.worst.cell.accuracy if found.worst else None,
        missing=found.missing,
    )


def _rules(scored: Iterable[LinkScored], chosen: str | None) -> tuple[RuleTried, ...]:
    """Of the newest evaluation that tried rules; the best first."""
    tried: dict[str, dict[int, Cell]] = {}
    for event in scored:
        rows = by_candidate(event.scores)
        found = {name.removeprefix(BY_RULE): row for name, row in rows.items() if name.startswith(BY_RULE)}
        tried = found or tried
    rules = []
    for rule, row in tried.items():
        at = standing(row)
        if at is not None:
            rules.append(
                RuleTried(
                    rule=rule,
                    average_accuracy=at.average_accuracy,
                    average_loss=at.average_loss,
                    worst_task=at.worst.task,
                    worst_accuracy=at.worst.cell.accuracy,
                    chosen=rule == chosen,
                )
            )
    return tuple(sorted(rules, key=lambda each: (-each.average_accuracy, each.average_loss)))


def write(run_dir: RunDir, spec: RunSpec, facts: Facts) -> CampaignReport:
    """Makes the report and writes it over the one before. Raises OSError."""
    combined = _combined(Path(facts.merged[facts.last].folder)) if facts.merged else None
    report = make(spec, facts, combined)
    durable.write_file(run_dir.campaign_report, msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    return report


def _combined(folder: Path) -> Combined | None:
    try:
        return msgspec.json.decode((folder / COMBINED).read_bytes(), type=Combined)
    except (OSError, msgspec.DecodeError):
        return None  # an older version's, or a disk that does not answer: the weights are only told


def read(run_dir: RunDir) -> CampaignReport | None:
    """The report of a campaign; None if there is none that can be read."""
    try:
        return msgspec.json.decode(run_dir.campaign_report.read_bytes(), type=CampaignReport)
    except (OSError, msgspec.DecodeError):
        return None
