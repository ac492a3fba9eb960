"""A campaign's runs merged once more, by any rule: what is there to merge, and the Jobs that do and judge it.

Merging never feeds back into training, so nothing is trained for it: each run's own adapter is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from backpropagate.judge.campaign import AUTO, BY_RULE, RULES, UNMERGED, Facts, Link, base_model, held_out, tasks
from backpropagate.judge.forgetting import by_candidate, pick
from backpropagate.keep import journal, runs
from backpropagate.keep.changed_data import Files, changed
from backpropagate.measured import LinkScore
from backpropagate.wishes.campaign_again import campaign
from backpropagate.wishes.campaign_spec import mergeable, numbers_that_count
from backpropagate.wishes.settings import Settings
from backpropagate_protocol.combined import MERGED
from backpropagate_protocol.errors import ConfigurationError, UserInputError
from backpropagate_protocol.jobs import Candidate, CombineJob, EvaluateJob
from backpropagate_protocol.measured import Score
from backpropagate_protocol.rundir import RunDir
from backpropagate_protocol.spec import RunSpec


@dataclass(frozen=True, slots=True)
class Again:
    """What is to be made: one merge, or with `auto` one for each rule, of which `evaluate` will say which is the best."""

    spec: RunSpec
    links: tuple[Link, ...]  # that are trained, in order
    jobs: tuple[CombineJob, ...]
    evaluate: EvaluateJob | None


def merge_again(run_dir: RunDir, settings: Settings) -> Again:
    """Raises a coded error for a campaign without a trained run, and for wishes that cannot be served."""
    spec, whole = campaign(run_dir)
    rule = settings.text("campaign.merge")
    numbers_that_count(settings, rule)
    facts = Facts.of(spec)
    for event in journal.read(run_dir.events):
        facts.event(event)
    facts.changed = frozenset(changed(facts, Files().digest))
    adapters = _adapters(run_dir, facts)
    mergeable(spec.lora.use_dora, rule)
    links = tuple(link for link in facts.links if link.number in facts.trained)
    rules = tuple(dict.fromkeys((*RULES, UNMERGED))) if rule == AUTO else (rule,)
    jobs = tuple(
        CombineJob(
            adapters=adapters,
            out=str(run_dir.merge_again(each)),
            rule=each,
            floor=_number(settings, "campaign.floor", whole.floor),
            weight=_number(settings, "campaign.weight", whole.weight),
            density=_number(settings, "campaign.density", whole.density),
            seed=spec.train.seed,
        )
        for each in rules
    )
    return Again(spec, links, jobs, _evaluation(run_dir, spec, facts, links, jobs) if rule == AUTO else None)


def _number(settings: Settings, key: str, kept: float) -> float:
    """The campaign's own, unless another is given now."""
    return settings.number(key) if settings[key].given else kept


def _adapters(run_dir: RunDir, facts: Facts) -> tuple[str, ...]:
    """Of the runs that are trained, in order, as they were fine-tuned."""
    if not facts.trained:
        raise UserInputError(
            f"campaign {run_dir.run_id[:8]} has no trained run yet",
            suggestion=f"Go on with it: {runs.resuming(run_dir)}",
            run_id=run_dir.run_id,
        )
    found = [facts.trained[number] for number in sorted(facts.trained)]
    for link in found:
        if not Path(link.adapter).is_dir():
            raise UserInputError(
                f"the adapter of run {link.link} ({link.name}) is not there any more: {link.adapter}",
                suggestion="Bring it back: without the runs' own adapters nothing can be merged anew.",
                run_id=run_dir.run_id,
            )
    return tuple(link.adapter for link in found)


def _evaluation(
    run_dir: RunDir, spec: RunSpec, facts: Facts, links: Sequence[Link], jobs: Sequence[CombineJob]
) -> EvaluateJob:
    asked = tasks(facts, len(links))
    if not asked:
        raise ConfigurationError(
            "--merge auto decides by held-out rows, and this campaign has none that are as they were",
            suggestion="Choose a rule yourself; docs/multi-run.md says what each is for.",
            run_id=run_dir.run_id,
        )
    assert spec.campaign is not None
    return EvaluateJob(
        model=base_model(spec, facts),
        candidates=tuple(Candidate(BY_RULE + job.rule, str(Path(job.out) / MERGED)) for job in jobs),
        tasks=tuple(held_out(link.data, spec.campaign.eval_rows) for link in asked),
        cache=str(run_dir.output.cache),
        backend=spec.backend,
    )


def best(scores: Sequence[Score]) -> tuple[str, dict[str, float]]:
    """The rule to take, and each rule's average accuracy."""
    told = [LinkScore(s.candidate, s.task, s.loss, s.accuracy, s.tokens, s.rows) for s in scores]
    by_rule = {name.removeprefix(BY_RULE): row for name, row in by_candidate(told).items()}
    try:
        chosen = pick(by_rule)
    except ValueError as error:
        raise ConfigurationError(
            f"there is nothing to choose by: {error}", suggestion="Choose a rule yourself."
        ) from error
    means = {rule: sum(cell.accuracy for cell in row.values()) / len(row) for rule, row in by_rule.items() if row}
    return chosen, means
