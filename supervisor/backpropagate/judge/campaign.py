"""What a campaign does next: from its wishes and from what its journal says is done. Pure.

1. Nothing is done twice: what the journal has, and what is still on the disk, is never asked for again.
2. A merge never comes before its training, an evaluation never before its merge, a training never before the merge that
   it begins from.
3. Whatever prefix of a campaign's journal is there, the rest comes to the same end.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from backpropagate.events import (
    CampaignExtended,
    Event,
    LinkEnded,
    LinkMerged,
    LinkScored,
    RunEnded,
    StageEnded,
)
from backpropagate.judge.forgetting import comparable_losses, matrix, should_stop
from backpropagate.judge.plan import Stage, planned_for
from backpropagate_protocol.combined import MERGED as MERGED_FOLDER
from backpropagate_protocol.combined import NEXT
from backpropagate_protocol.jobs import Candidate, CombineJob, EvaluateJob, PlotJob
from backpropagate_protocol.rundir import OutputDir, RunDir
from backpropagate_protocol.spec import CampaignSpec, DataSpec, ModelSpec, PlannedFault, RunSpec

AUTO = "auto"
UNMERGED = "none"
RULES = ("slao", "slao-product", "ema", "average", "ties", "dare", UNMERGED)  # that `auto` chooses from
_WHILE_IT_RUNS = "slao"  # what `auto` merges by until the last run is trained
MERGED, NEWEST, BASE = "merged", "newest", "base"  # candidates of an evaluation
BY_RULE = "rule:"  # begins the name of a candidate that another rule made


@dataclass(frozen=True, slots=True)
class Link:
    """One run of a campaign, counted from 1."""

    number: int
    data: DataSpec
    name: str


@dataclass(frozen=True, slots=True)
class Train:
    link: Link
    run: RunSpec


@dataclass(frozen=True, slots=True)
class Combine:
    link: Link
    stage: Stage
    job: CombineJob


@dataclass(frozen=True, slots=True)
class Evaluate:
    """`needed`: what follows depends on it."""

    link: Link
    stage: Stage
    job: EvaluateJob
    needed: bool


@dataclass(frozen=True, slots=True)
class Choose:
    """`--merge auto`: the last run's merge by every rule, the first of which is made already; then all of them scored."""

    link: Link
    combine: tuple[Combine, ...]
    evaluate: Evaluate


@dataclass(frozen=True, slots=True)
class Publish:
    """`merged`: the folder of the adapter that the campaign comes to. `newest`: that of its last run."""

    link: Link
    merged: Path
    newest: Path


@dataclass(frozen=True, slots=True)
class Done:
    """Nothing is left to train or to merge."""


Step = Train | Combine | Evaluate | Choose | Publish | Done


@dataclass(slots=True)
class Facts:
    """What is known of a campaign. Feed it every event of its journal, in order; it may watch a campaign as a sink."""

    links: list[Link]
    trained: dict[int, LinkEnded] = field(default_factory=dict)
    merged: dict[int, LinkMerged] = field(default_factory=dict)
    scored: dict[int, LinkScored] = field(default_factory=dict)
    unscored: set[int] = field(default_factory=set)  # could not be scored by this supervisor, which is not fatal
    changed: frozenset[int] = frozenset()  # runs whose files are not what they were: neither replayed nor asked about
    published: int = 0  # the run after which the adapter was published last
    settled: int = 0  # runs that early stopping has nothing to say about: a finished campaign was extended after them

    @classmethod
    def of(cls, spec: RunSpec) -> Facts:
        wanted = wishes(spec)
        names = [*wanted.names, *("" for _ in wanted.runs)]
        return cls([Link(i + 1, data, names[i] or f"run {i + 1}") for i, data in enumerate(wanted.runs)])

    def event(self, event: Event) -> None:
        match event:
            case LinkEnded():
                self.trained[event.link] = event
            case LinkMerged():
                self.merged[event.link] = event
            case LinkScored():
                self.scored[event.link] = event
            case StageEnded(stage="train"):
                self.published = max(self.trained, default=0)
            case RunEnded(status="completed"):  # runs that early stopping left out stay out
                self.links = [link for link in self.links if link.number in self.trained]
                self.settled = len(self.links)
            case CampaignExtended():
                self.links = [*self.links, Link(len(self.links) + 1, event.data, event.name)]
                self.published = 0  # what is published is no longer what the campaign comes to
            case _:
                pass

    def close(self) -> None: ...

    def forget_missing(self, there: Callable[[Path], bool], spec: RunSpec) -> None:
        """What lies no longer on the disk has to be made again, as far as anything is still made of it."""
        self.merged = {n: merge for n, merge in self.merged.items() if there(Path(merge.folder))}
        self.trained = {
            n: link for n, link in self.trained.items() if n in self.merged or there(link_dir(spec, n).adapter)
        }

    @property
    def last(self) -> int:
        """The last run that is trained and merged; 0: none."""
        return max(self.merged, default=0)

    @property
    def chosen(self) -> bool:
        """Whether `auto` has chosen after the last run."""
        return self.last > 0 and self.merged[self.last].chosen


def wishes(spec: RunSpec) -> CampaignSpec:
    assert spec.campaign is not None
    return spec.campaign


def next_step(spec: RunSpec, facts: Facts) -> Step:
    """The one thing to do now."""
    wanted = wishes(spec)
    last = facts.links[-1]
    for link in facts.links:
        if link.number not in facts.trained:
            return Train(link, link_spec(spec, link, facts))
        if link.number not in facts.merged:
            return _combine(spec, link, rule(wanted))
        if _worth_scoring(wanted, link) and link.number not in facts.scored and link.number not in facts.unscored:
            return _evaluate(spec, facts, link)
        if _stops_early(wanted, facts, link):
            last = link
            break
    if wanted.merge == AUTO and _worth_scoring(wanted, last) and not facts.merged[last.number].chosen:
        return _choose(spec, facts, last)
    if facts.published != last.number:
        return Publish(
            last, Path(facts.merged[last.number].folder) / MERGED_FOLDER, link_dir(spec, last.number).adapter
        )
    return Done()


def rule(wanted: CampaignSpec) -> str:
    """What every run is merged by as soon as it is trained."""
    return _WHILE_IT_RUNS if wanted.merge == AUTO else wanted.merge


def _worth_scoring(wanted: CampaignSpec, link: Link) -> bool:
    return wanted.evaluate and link.data.holdout > 0


def _stops_early(wanted: CampaignSpec, facts: Facts, link: Link) -> bool:
    if not wanted.early_stop or link.number <= facts.settled or link.number + 1 in facts.trained:
        return False
    scored = [facts.scored[number] for number in sorted(facts.scored) if number <= link.number]
    asked = [task.number - 1 for task in tasks(facts, link.number)]
    losses = comparable_losses(matrix(scored, MERGED, asked), matrix(scored, BASE, asked))
    return should_stop(losses, wanted.early_stop)


# --- a run of the campaign ------------------------------------------------------------------------------------------


def link_id(campaign_id: str, number: int) -> str:
    """The run id of a campaign's run: always the same, so that it is found again."""
    return str(uuid.uuid5(uuid.UUID(campaign_id), str(number)))


def link_dir(spec: RunSpec, number: int) -> RunDir:
    return OutputDir(Path(spec.output)).run(link_id(spec.run_id, number))


def campaign_dir(spec: RunSpec) -> RunDir:
    return OutputDir(Path(spec.output)).run(spec.run_id)


def base_model(spec: RunSpec, facts: Facts) -> ModelSpec:
    """The base that every run is trained on: at the commit that was wished for, or that the first run got."""
    first = facts.trained.get(1)
    if spec.model.revision is None and first is not None and first.model_revision:
        return msgspec.structs.replace(spec.model, revision=first.model_revision)
    return spec.model


def link_spec(spec: RunSpec, link: Link, facts: Facts) -> RunSpec:
    """A training like any other. Each run shuffles in its own way; the first is what it would be without a campaign.

    Later runs begin from what the merge before them left to begin from, and train on the same commit of the base.
    """
    number = link.number
    begin = spec.init_adapter if number == 1 else str(campaign_dir(spec).merge(number - 1) / NEXT)
    return msgspec.structs.replace(
        spec,
        run_id=link_id(spec.run_id, number),
        kind="train",
        model=base_model(spec, facts) if number > 1 else spec.model,
        data=_unchanged(link.data, facts),
        train=msgspec.structs.replace(spec.train, seed=spec.train.seed + number - 1),
        name=link.name,
        faults=tuple(_of_link(fault, number) for fault in spec.faults if _trains(fault.stage, number)),
        export=None,
        campaign=None,
        parent=spec.run_id,
        link=number,
        init_adapter=begin,
    )


def _unchanged(data: DataSpec, facts: Facts) -> DataSpec:
    """Without the rows that would be replayed from files that changed."""
    gone = {link.data.source for link in facts.links if link.number in facts.changed}
    return msgspec.structs.replace(data, replay=tuple(each for each in data.replay if each.source not in gone))


def _trains(stage: str, number: int) -> bool:
    """`train-2` is the training of the second run; `train` that of the first, as in a run of its own."""
    name, _, which = stage.partition("-")
    return name == "train" and (which.isdecimal() and int(which) == number if which else number == 1)


def _of_link(fault: PlannedFault, number: int) -> PlannedFault:
    return msgspec.structs.replace(fault, stage="train")


# --- stages ---------------------------------------------------------------------------------------------------------


def _combine(spec: RunSpec, link: Link, by: str, *, apart: bool = False) -> Combine:
    """`apart`: beside the campaign's own merges, all runs from the beginning."""
    wanted, home, number = wishes(spec), campaign_dir(spec), link.number
    name = f"combine-{number:03d}" + (f"-{by}" if apart else "")
    out = home.merge_by(number, by) if apart else home.merge(number)
    job = CombineJob(
        adapters=tuple(str(link_dir(spec, n).adapter) for n in range(1, number + 1)),
        out=str(out),
        rule=by,
        previous=str(home.merge(number - 1)) if number > 1 and not apart else None,
        floor=wanted.floor,
        weight=wanted.weight,
        density=wanted.density,
        seed=spec.train.seed,
        faults=planned_for(spec, name, "combine"),
    )
    return Combine(link, Stage(name, job, "RUNTIME_SLAO_MERGE_FAILED", str(out)), job)


def _evaluate(spec: RunSpec, facts: Facts, link: Link) -> Evaluate:
    """The merged adapter, the newest run's own if it is another, and the base."""
    wanted, number = wishes(spec), link.number
    candidates = [Candidate(MERGED, str(Path(facts.merged[number].folder) / MERGED_FOLDER))]
    if number > 1 and facts.merged[number].rule != UNMERGED:
        candidates.append(Candidate(NEWEST, str(link_dir(spec, number).adapter)))
    candidates.append(Candidate(BASE, None))
    name = f"evaluate-{number:03d}"
    return _evaluation(spec, facts, link, name, tuple(candidates), needed=wanted.early_stop > 0)


def _evaluation(
    spec: RunSpec, facts: Facts, link: Link, name: str, candidates: tuple[Candidate, ...], *, needed: bool
) -> Evaluate:
    wanted = wishes(spec)
    job = EvaluateJob(
        model=base_model(spec, facts),
        candidates=candidates,
        tasks=tuple(held_out(each.data, wanted.eval_rows) for each in tasks(facts, link.number)),
        cache=str(OutputDir(Path(spec.output)).cache),
        backend=spec.backend,
        faults=planned_for(spec, name, "evaluate"),
    )
    return Evaluate(link, Stage(name, job, "RUNTIME_EVALUATION_FAILED"), job, needed)


def tasks(facts: Facts, upto: int) -> list[Link]:
    """The runs whose held-out rows an evaluation after run `upto` asks about, in the order of its tasks."""
    return [link for link in facts.links[:upto] if link.data.holdout > 0 and link.number not in facts.changed]


def held_out(data: DataSpec, rows: int) -> DataSpec:
    """The held-out rows of a run's own part of the file, the first `rows` of them."""
    first = -(-(data.start + 1) // data.holdout) * data.holdout - 1
    enough = first + (rows - 1) * data.holdout + 1 - data.start
    most = enough if data.samples is None else min(enough, data.samples)
    return msgspec.structs.replace(data, part="held-out", samples=most, replay=())


def _choose(spec: RunSpec, facts: Facts, link: Link) -> Choose:
    apart = tuple(_combine(spec, link, by, apart=True) for by in RULES if by != _WHILE_IT_RUNS)
    every = (_combine(spec, link, _WHILE_IT_RUNS), *apart)
    by_rule = tuple(Candidate(BY_RULE + each.job.rule, str(Path(each.job.out) / MERGED_FOLDER)) for each in every)
    name = f"choose-{link.number:03d}"
    return Choose(link, every, _evaluation(spec, facts, link, name, by_rule, needed=True))


def plot(spec: RunSpec) -> Stage:
    """The report as pictures."""
    home = campaign_dir(spec)
    pictures = (str(home.campaign_plot("svg")), str(home.campaign_plot("png")))
    job = PlotJob(report=str(home.campaign_report), out=pictures, faults=planned_for(spec, "plot", "plot"))
    return Stage("plot", job, "RUNTIME_EVALUATION_FAILED", pictures[0])
