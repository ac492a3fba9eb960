"""A campaign's next step: in order, never twice, and from any prefix of its journal to the same end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backpropagate.events import (
    CampaignExtended,
    Event,
    LinkEnded,
    LinkMerged,
    LinkScored,
    RunEnded,
    StageEnded,
)
from backpropagate.judge import campaign as judge
from backpropagate.judge.campaign import Choose, Combine, Done, Evaluate, Facts, Publish, Step, Train
from backpropagate.measured import LinkScore
from backpropagate_protocol.spec import (
    CampaignSpec,
    DataSpec,
    ExportSpec,
    ModelSpec,
    PlannedFault,
    Portion,
    RunSpec,
    TrainSpec,
)

ID = "0b0e5a52-8d5f-4f43-9f0e-6a3f9a1f8f55"


def campaign(runs: int = 3, held_out: tuple[int, ...] = (), **wishes: object) -> RunSpec:
    """held_out: runs without held-out rows."""
    every = tuple(
        DataSpec(source=f"/data/week-{n}.jsonl", holdout=0 if n in held_out else 4) for n in range(1, runs + 1)
    )
    settings = {"runs": every, "names": tuple(f"week-{n}" for n in range(1, runs + 1)), **wishes}
    return RunSpec(
        run_id=ID,
        created="",
        backend="toy",
        output="/out",
        model=ModelSpec(name="toy", path="toy"),
        data=every[0],
        train=TrainSpec(steps=10),
        kind="campaign",
        campaign=msgspec.convert(settings, CampaignSpec),
    )


def told(spec: RunSpec, step: Step, seed: int = 0) -> list[Event]:
    """What is in the journal when the step is done. Losses are drawn by the run, so that they are the same every time."""
    base = {"time": 0.0, "run_id": spec.run_id}
    match step:
        case Train(link=link):
            run = judge.link_id(spec.run_id, link.number)
            return [LinkEnded(link=link.number, link_run=run, name=link.name, adapter="/a", steps=10, model_revision="c", **base)]  # type: ignore[arg-type]  # fmt: skip
        case Combine(link=link, job=job):
            return [LinkMerged(link=link.number, folder=job.out, rule=job.rule, coefficient=1.0, **base)]  # type: ignore[arg-type]
        case Evaluate(link=link, job=job):
            loss = Random(f"{seed}/{link.number}").random
            scores = tuple(
                LinkScore(c.name, t, loss(), 0.5, 9, 3) for c in job.candidates for t in range(len(job.tasks))
            )
            return [LinkScored(link=link.number, scores=scores, **base)]  # type: ignore[arg-type]
        case Choose(link=link, combine=(*_, best)):
            return [LinkMerged(link=link.number, folder=best.job.out, rule=best.job.rule, coefficient=1.0, chosen=True, **base)]  # type: ignore[arg-type]  # fmt: skip
        case Publish():
            return [StageEnded(stage="train", path="/out/lora", **base)]  # type: ignore[arg-type]
        case _:
            return []


@dataclass
class Story:
    """Everything that was done, and the journal of it."""

    done: list[Step]
    journal: list[Event]


def play(spec: RunSpec, journal: list[Event], seed: int = 0) -> Story:
    """Does what is left to do after `journal`."""
    facts = Facts.of(spec)
    for event in journal:
        facts.event(event)
    story = Story([], list(journal))
    while not isinstance(step := judge.next_step(spec, facts), Done):
        assert len(story.done) < 200, "it does not come to an end"
        story.done.append(step)
        for event in told(spec, step, seed):
            facts.event(event)
            story.journal.append(event)
    return story


def name(step: Step) -> str:
    return f"{type(step).__name__} {step.link.number}" if not isinstance(step, Done) else "Done"


def names(story: Story) -> list[str]:
    return [name(step) for step in story.done]


wishes = st.fixed_dictionaries(
    {
        "runs": st.integers(1, 6),
        "held_out": st.frozensets(st.integers(1, 6), max_size=2).map(lambda which: tuple(sorted(which))),
        "merge": st.sampled_from(["slao", "none", "ties", "auto"]),
        "evaluate": st.booleans(),
        "early_stop": st.integers(0, 2),
    }
)


def of(wish: dict[str, object]) -> RunSpec:
    return campaign(**wish)  # type: ignore[arg-type]  # drawn by name


@given(wishes, st.integers(0, 9), st.data())
def test_any_prefix_of_the_journal_leads_to_the_same_end(
    wish: dict[str, object], seed: int, data: st.DataObject
) -> None:
    spec = of(wish)
    whole = play(spec, [], seed)
    cut = data.draw(st.integers(0, len(whole.journal)), label="events that an earlier supervisor wrote")
    rest = play(spec, whole.journal[:cut], seed)
    assert rest.journal == whole.journal
    assert names(rest) == names(whole)[len(names(whole)) - len(rest.done) :]


@given(wishes, st.integers(0, 9))
def test_nothing_is_done_twice_or_before_what_it_needs(wish: dict[str, object], seed: int) -> None:
    done = names(play(of(wish), [], seed))
    assert len(set(done)) == len(done)
    for number in range(1, 7):
        order = [
            done.index(f"{what} {number}") for what in ("Train", "Combine", "Evaluate") if f"{what} {number}" in done
        ]
        assert order == sorted(order)
        if f"Train {number + 1}" in done:
            assert done.index(f"Combine {number}") < done.index(f"Train {number + 1}")
    assert done[-1].startswith("Publish")


@given(wishes, st.integers(0, 9), st.integers(1, 3))
def test_runs_that_are_added_to_a_finished_campaign_are_trained_and_nothing_else(
    wish: dict[str, object], seed: int, more: int
) -> None:
    spec = of({**wish, "early_stop": 0})
    journal = play(spec, [], seed).journal
    journal.append(RunEnded(time=0.0, run_id=ID, status="completed", exit_code=0, step=1, total_steps=1))
    for number in range(more):
        new = DataSpec(source=f"/data/new-{number}.jsonl", holdout=4)
        journal.append(CampaignExtended(time=0.0, run_id=ID, data=new, name=f"new-{number}"))
    assert spec.campaign is not None
    before = len(spec.campaign.runs)
    later = play(spec, journal, seed)
    trained = [step.link for step in later.done if isinstance(step, Train)]
    assert [(link.number, link.name) for link in trained] == [(before + n + 1, f"new-{n}") for n in range(more)]
    assert isinstance(later.done[-1], Publish)
    assert later.done[-1].link.number == before + more


def test_a_campaign_that_stops_early_leaves_its_last_runs_out_also_when_it_is_extended() -> None:
    spec = campaign(5, early_stop=1)
    seed = next(s for s in range(99) if names(play(spec, [], s))[-1] == "Publish 3")
    journal = play(spec, [], seed).journal
    journal.append(RunEnded(time=0.0, run_id=ID, status="completed", exit_code=0, step=1, total_steps=1))
    assert names(play(spec, journal, seed)) == []
    journal.append(
        CampaignExtended(time=0.0, run_id=ID, data=DataSpec(source="/data/new.jsonl", holdout=4), name="new")
    )
    later = play(spec, journal, seed)
    assert names(later) == ["Train 4", "Combine 4", "Evaluate 4", "Publish 4"]
    assert isinstance(later.done[0], Train)
    assert later.done[0].run.data.source == "/data/new.jsonl"


def test_what_cannot_be_scored_is_asked_once_and_by_the_next_supervisor_again() -> None:
    spec, facts = campaign(2), Facts.of(campaign(2))
    for expected in ("Train 1", "Combine 1"):
        step = judge.next_step(spec, facts)
        assert name(step) == expected
        for event in told(spec, step):
            facts.event(event)
    assert name(judge.next_step(spec, facts)) == "Evaluate 1"
    facts.unscored.add(1)
    assert name(judge.next_step(spec, facts)) == "Train 2"


def test_a_lost_merge_is_made_again_and_a_lost_adapter_only_if_something_is_still_made_of_it() -> None:
    spec = campaign(2)
    journal = play(spec, []).journal
    home, facts = judge.campaign_dir(spec), Facts.of(spec)
    for event in journal:
        facts.event(event)
    facts.forget_missing(lambda path: path != home.merge(2) and path != judge.link_dir(spec, 1).adapter, spec)
    assert name(judge.next_step(spec, facts)) == "Combine 2"
    facts.forget_missing(lambda path: path not in (home.merge(2), judge.link_dir(spec, 2).adapter), spec)
    assert name(judge.next_step(spec, facts)) == "Train 2"


# --- a run's spec ---------------------------------------------------------------------------------------------------


def specs(spec: RunSpec) -> list[RunSpec]:
    return [step.run for step in play(spec, []).done if isinstance(step, Train)]


def test_a_runs_spec_is_that_of_a_training_with_its_own_seed_and_its_own_beginning() -> None:
    export = ExportSpec(format="gguf", destination="/exports", name="talk")
    one, two, _ = specs(msgspec.structs.replace(campaign(), export=export))
    assert (one.kind, one.export, one.campaign, one.parent, one.link) == ("train", None, None, ID, 1)
    assert (one.train.seed, two.train.seed) == (42, 43)
    assert (one.init_adapter, two.init_adapter) == (
        None,
        str(Path("/out") / "runs" / ID / "merges" / "run-001" / "next"),
    )
    assert (one.data.source, two.data.source, two.name) == ("/data/week-1.jsonl", "/data/week-2.jsonl", "week-2")
    assert len({spec.run_id for spec in (one, two)}) == 2
    assert one.run_id == specs(campaign())[0].run_id  # the same again for the same campaign


def test_later_runs_train_on_the_commit_of_the_base_that_the_first_one_found() -> None:
    one, two, _ = specs(campaign())
    assert (one.model.revision, two.model.revision) == (None, "c")


@pytest.mark.parametrize(("stage", "runs"), [("train", [1]), ("train-1", [1]), ("train-2", [2]), ("train-003", [3]), ("combine-002", [])])  # fmt: skip
def test_a_planned_fault_strikes_the_run_it_names(stage: str, runs: list[int]) -> None:
    spec = msgspec.structs.replace(campaign(), faults=(PlannedFault(kind="oom", step=3, stage=stage),))
    struck = [each for each in specs(spec) if each.faults]
    assert [each.link for each in struck] == runs
    assert all(fault.stage == "train" for each in struck for fault in each.faults)


def test_a_planned_fault_of_a_stage_is_given_to_its_child() -> None:
    faults = (
        PlannedFault(kind="oom", step=1, stage="combine-002"),
        PlannedFault(kind="hang", step=2, stage="evaluate-003"),
    )
    done = play(msgspec.structs.replace(campaign(), faults=faults), []).done
    struck = {name(step): step.job.faults for step in done if isinstance(step, Combine | Evaluate) and step.job.faults}
    assert {what: (fault.kind, fault.stage) for what, (fault,) in struck.items()} == {
        "Combine 2": ("oom", "combine"),
        "Evaluate 3": ("hang", "evaluate"),
    }


# --- held-out rows --------------------------------------------------------------------------------------------------


@given(st.integers(0, 60), st.one_of(st.none(), st.integers(1, 60)), st.integers(2, 9), st.integers(1, 20))
def test_an_evaluation_reads_the_first_held_out_rows_of_the_runs_own_window(
    start: int, samples: int | None, every: int, most: int
) -> None:
    data = DataSpec(source="/x", start=start, samples=samples, holdout=every)
    end = 500 if samples is None else start + samples
    its_own = [row for row in range(start, end) if row % every == every - 1]
    asked = judge.held_out(data, most)
    assert asked.samples is not None
    read = [row for row in range(asked.start, asked.start + asked.samples) if row % every == every - 1]
    assert (asked.part, read) == ("held-out", its_own[:most])


def test_the_newest_runs_own_adapter_is_a_candidate_where_it_is_not_the_merged_one() -> None:
    asked = [[c.name for c in step.job.candidates] for step in play(campaign(2), []).done if isinstance(step, Evaluate)]
    assert asked == [["merged", "base"], ["merged", "newest", "base"]]
    unmerged = play(campaign(2, merge="none"), []).done
    assert [len(step.job.candidates) for step in unmerged if isinstance(step, Evaluate)] == [2, 2]


def test_auto_tries_every_rule_on_the_last_run_from_the_beginning() -> None:
    (choose,) = (step for step in play(campaign(3, merge="auto"), []).done if isinstance(step, Choose))
    assert choose.link.number == 3
    assert [combine.job.rule for combine in choose.combine] == list(judge.RULES)
    assert [combine.job.previous is None for combine in choose.combine] == [False, *[True] * (len(judge.RULES) - 1)]
    assert len({combine.job.out for combine in choose.combine}) == len(judge.RULES)
    assert [candidate.name for candidate in choose.evaluate.job.candidates] == [f"rule:{rule}" for rule in judge.RULES]


def test_a_run_whose_file_changed_is_neither_asked_about_nor_replayed() -> None:
    again = tuple(Portion(source=f"/data/week-{n}.jsonl", start=0, stop=9, take=2, seed=1) for n in (1, 2))
    spec = campaign(3)
    third = msgspec.structs.replace(judge.wishes(spec).runs[2], replay=again)
    spec = msgspec.structs.replace(
        spec, campaign=msgspec.structs.replace(judge.wishes(spec), runs=(*judge.wishes(spec).runs[:2], third))
    )
    facts = Facts.of(spec)
    facts.changed = frozenset({1})
    assert [link.number for link in judge.tasks(facts, 3)] == [2, 3]
    assert [each.source for each in judge.link_spec(spec, facts.links[2], facts).data.replay] == ["/data/week-2.jsonl"]


def test_what_was_published_before_a_run_was_added_is_no_longer_what_the_campaign_comes_to() -> None:
    """Also where the number of runs stays what was published: the added one comes after those that were left out."""
    facts = Facts.of(campaign(1))
    for event in play(campaign(1), []).journal:
        facts.event(event)
    assert facts.published == 1
    facts.event(CampaignExtended(time=0.0, run_id=ID, data=DataSpec(source="/data/new.jsonl"), name="new"))
    assert facts.published == 0
