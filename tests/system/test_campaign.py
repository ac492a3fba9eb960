"""A campaign comes to the same merged adapter, whatever ends its children or its supervisor on the way."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from backpropagate import checkpoints
from backpropagate.commands import supervising
from backpropagate.drive.extending import extend
from backpropagate.drive.supervise import supervise
from backpropagate.events import (
    CampaignExtended,
    CheckpointCommitted,
    Event,
    LinkEnded,
    LinkMerged,
    LinkScored,
    LinkStarted,
    Noticed,
    Recovering,
    StageEnded,
    StageStarted,
    Step,
)
from backpropagate.keep import history, journal, locks, runs, userstate
from backpropagate.keep.journal import Follower
from backpropagate.keep.past import Past
from backpropagate.outcome import Outcome
from backpropagate.screen import Screen
from backpropagate.wishes.campaign_again import Extension
from backpropagate_protocol.durable import verify_dir
from backpropagate_protocol.errors import BusyError, UserInputError
from backpropagate_protocol.rundir import OutputDir, RunDir
from backpropagate_protocol.spec import RunSpec
from tests.conftest import Oracle
from tests.system.campaigns import STEPS, WEIGHTS, campaign_of, data_set, home, link_home, published
from tests.system.supervised import At, Story, Supervisor, resume_here, run_here, supervisor

pytestmark = pytest.mark.slow
posix = pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")


@dataclass(frozen=True)
class Ended:
    """What an undisturbed campaign came to."""

    outcome: Outcome
    weights: bytes
    digests: tuple[str, ...]  # of every merge


def digests(spec: RunSpec) -> tuple[str, ...]:
    return tuple(event.digest for event in journal.read(home(spec).events) if isinstance(event, LinkMerged))


def ended(spec: RunSpec, outcome: Outcome) -> Ended:
    assert (outcome.status, outcome.exit_code, outcome.code) == ("completed", 0, None), outcome
    return Ended(outcome, published(spec), digests(spec))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    spec = campaign_of(OutputDir(Path(tmp_path_factory.mktemp("undisturbed")) / "out"))
    outcome, _ = run_here(spec)
    return ended(spec, outcome)


def assert_the_same(spec: RunSpec, outcome: Outcome, undisturbed: Ended) -> None:
    """Every bit of what was merged, and every sample in its order."""
    now = ended(spec, outcome)
    assert now.weights == undisturbed.weights
    assert now.digests == undisturbed.digests
    one, other = now.outcome, undisturbed.outcome
    assert (one.step, one.total_steps, one.samples_seen, one.order) == (other.step, other.total_steps, other.samples_seen, other.order)  # fmt: skip


def test_each_run_is_trained_merged_and_scored_before_the_next(oracle: Oracle) -> None:
    spec = campaign_of(oracle.output())
    outcome, story = run_here(spec)
    of_campaign = [e for e in story.events if isinstance(e, LinkStarted | LinkEnded | LinkMerged | LinkScored)]
    assert [type(event) for event in of_campaign] == [LinkStarted, LinkEnded, LinkMerged, LinkScored] * 3
    assert [round(event.coefficient, 3) for event in story.of(LinkMerged)] == [1.0, 0.707, 0.577]
    assert {(s.candidate, s.task) for s in story.of(LinkScored)[2].scores} == {
        (candidate, task) for candidate in ("merged", "newest", "base") for task in range(3)
    }
    assert [event.step for event in story.of(Step) if event.step == STEPS] == [STEPS] * 3
    assert (outcome.step, outcome.total_steps) == (3 * STEPS, 3 * STEPS)
    assert outcome.adapter == str(home(spec).adapter)
    published(spec)


def test_a_run_begins_from_what_the_merge_before_it_left_and_shuffles_in_its_own_way(oracle: Oracle) -> None:
    spec = campaign_of(oracle.output(), runs=2)
    run_here(spec)
    one, two = (runs.load_spec(link_home(spec, number)) for number in (1, 2))
    assert (one.init_adapter, two.init_adapter) == (None, str(home(spec).merge(1) / "next"))
    assert (one.train.seed, two.train.seed) == (spec.train.seed, spec.train.seed + 1)
    assert (one.parent, two.parent, two.link) == (spec.run_id, spec.run_id, 2)


def test_the_history_shows_the_campaign_and_its_runs(oracle: Oracle) -> None:
    spec = campaign_of(oracle.output(), "train-2:error:7", runs=2)
    run_here(spec)
    *links, row = history.list_rows(oracle.output())
    assert (row.session_kind, row.status, row.steps, row.recoveries) == ("multi_run", "completed", 2 * STEPS, 1)
    assert [(run["link"], run["name"], run["recoveries"]) for run in row.runs] == [(1, "week-1", 0), (2, "week-2", 1)]
    assert [(link.parent, link.link, link.status) for link in links] == [
        (spec.run_id, number, "completed") for number in (2, 1)
    ]
    assert history.rebuild(oracle.output()) == 3
    assert {row.run_id: row for row in history.list_rows(oracle.output())}[spec.run_id] == row


# --- faults of children ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        "train:oom:3",
        "train-2:sigkill:7",
        "train-2:sigkill_in_save:10",
        "train-3:torn_save:5",
        "combine-002:sigkill:1",
        "combine-003:error:2",
        "evaluate-002:sigkill:1",
    ],
)
def test_a_fault_in_any_link_costs_only_time(oracle: Oracle, undisturbed: Ended, fault: str) -> None:
    faults = [fault, "train-3:sigkill:7"] if "torn" in fault else [fault]
    spec = campaign_of(oracle.output(), *faults)
    outcome, story = run_here(spec)
    assert outcome.recoveries == len(story.of(Recovering)) > 0
    assert_the_same(spec, outcome, undisturbed)


def test_a_run_that_fails_for_good_ends_the_campaign_with_its_code_and_the_campaign_goes_on_with_it(
    oracle: Oracle, undisturbed: Ended
) -> None:
    spec = campaign_of(oracle.output(), "train-2:nan:8")
    outcome, _ = run_here(spec)
    assert (outcome.status, outcome.code) == ("failed", "RUNTIME_LOSS_DIVERGED")
    assert outcome.message.startswith("run 2 of 3 (week-2): ")
    assert (outcome.step, outcome.total_steps, outcome.adapter) == (STEPS + 5, 3 * STEPS, None)
    again, story = resume_here(home(spec))
    assert [event.link for event in story.of(LinkStarted)] == [2, 3]
    assert_the_same(spec, again, undisturbed)


def test_an_evaluation_that_fails_for_good_is_told_and_the_campaign_goes_on(oracle: Oracle, undisturbed: Ended) -> None:
    spec = campaign_of(oracle.output(), "evaluate-002:error:1:0")
    outcome, story = run_here(spec)
    assert_the_same(spec, outcome, undisturbed)
    assert [event.link for event in story.of(LinkScored)] == [1, 3]
    assert any(event.text.startswith("run 2 is not scored") for event in story.of(Noticed))


def test_an_evaluation_that_fails_for_good_ends_a_campaign_that_stops_by_it(oracle: Oracle) -> None:
    spec = campaign_of(oracle.output(), "evaluate-001:error:1", "evaluate-001:error:1:2", runs=2, early_stop=1)
    outcome, story = run_here(spec)
    assert (outcome.status, outcome.code, outcome.adapter) == ("failed", "RUNTIME_EVALUATION_FAILED", None)
    assert [event.link for event in story.of(LinkStarted)] == [1]
    again, _ = resume_here(home(spec))
    assert (again.status, again.step) == ("completed", 2 * STEPS)


def test_a_campaign_whose_scores_do_not_get_better_ends_early_with_what_it_has(oracle: Oracle) -> None:
    spec = campaign_of(oracle.output(), runs=4, early_stop=1)
    spec = msgspec.structs.replace(spec, train=msgspec.structs.replace(spec.train, learning_rate=0.0))
    outcome, story = run_here(spec)
    assert [event.link for event in story.of(LinkStarted)] == [1, 2]
    assert (outcome.status, outcome.step, outcome.total_steps) == ("completed", 2 * STEPS, 2 * STEPS)
    published(spec)


def test_a_merge_that_fails_for_good_leaves_a_campaign_that_can_be_resumed(oracle: Oracle, undisturbed: Ended) -> None:
    spec = campaign_of(oracle.output(), *(f"combine-002:error:1:{attempt}" for attempt in (1, 2, 3)))
    outcome, _ = run_here(spec)
    assert (outcome.status, outcome.exit_code, outcome.code) == ("failed", 2, "RUNTIME_SLAO_MERGE_FAILED")
    assert spec.run_id[:8] in outcome.suggestion
    assert_the_same(spec, resume_here(home(spec))[0], undisturbed)


# --- ends of supervisors --------------------------------------------------------------------------------------------


def saved_in(run_dir: RunDir, step: int) -> Callable[[], bool]:
    return lambda: any(isinstance(e, CheckpointCommitted) and e.step >= step for e in journal.read(run_dir.events))


def in_stage(run: Supervisor, name: str) -> Callable[[], bool]:
    return lambda: any(event.stage == name for event in run.of(StageStarted))


@posix
def test_a_supervisor_that_is_killed_in_a_run_is_followed_by_one_that_goes_on_in_that_run(
    oracle: Oracle, undisturbed: Ended
) -> None:
    spec = campaign_of(oracle.output(), "train-2:hold:8")
    with supervisor(spec) as run:
        run.until(saved_in(link_home(spec, 2), 5), "step 5 of the second run was saved")
        statuses = {row.link: row.status for row in history.list_rows(oracle.output())}
        assert statuses == {0: "running", 1: "completed", 2: "running"}
        run.process.kill()
        run.wait()
    assert {row.status for row in history.list_rows(oracle.output())} == {"interrupted", "completed"}
    outcome, story = resume_here(home(spec))
    assert story.of(Step)[0].step > 5  # the second run was not begun anew
    assert [event.link for event in story.of(LinkStarted)] == [2, 3]
    assert_the_same(spec, outcome, undisturbed)


def test_a_supervisor_that_is_killed_while_it_makes_a_runs_folder_leaves_nothing_in_the_way(
    oracle: Oracle, undisturbed: Ended
) -> None:
    spec = campaign_of(oracle.output())
    link_home(spec, 2).path.mkdir(parents=True)
    outcome, _ = run_here(spec)
    assert_the_same(spec, outcome, undisturbed)


@posix
@pytest.mark.parametrize("stage", ["combine-002", "evaluate-002"])
def test_a_supervisor_that_is_killed_in_a_stage_is_followed_by_one_that_does_it(
    oracle: Oracle, undisturbed: Ended, stage: str
) -> None:
    spec = campaign_of(oracle.output(), f"{stage}:hang:1")
    with supervisor(spec) as run:
        run.until(in_stage(run, stage), f"{stage} began")
        run.process.kill()
        run.wait()
    outcome, story = resume_here(home(spec))
    assert [event.link for event in story.of(LinkStarted)] == [3]
    assert_the_same(spec, outcome, undisturbed)


@posix
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_saves_the_run_that_is_under_way_and_a_resume_goes_on_there(
    oracle: Oracle, undisturbed: Ended, number: signal.Signals, code: int
) -> None:
    spec = campaign_of(oracle.output(), "train-2:hold:8")
    with supervisor(spec) as run:
        run.until(saved_in(link_home(spec, 2), 5), "step 5 of the second run was saved")
        run.signal(number)
        assert run.wait() == code
        last = run.ended()
        assert (last.status, last.code, last.kind) == ("interrupted", "RUNTIME_TRAINING_ABORTED", "campaign")
        assert f"backprop resume {spec.run_id[:8]}" in last.suggestion
    assert_the_same(spec, resume_here(home(spec))[0], undisturbed)


@posix
def test_a_signal_between_two_children_is_not_lost(oracle: Oracle, undisturbed: Ended) -> None:
    spec = campaign_of(oracle.output())
    term = At(
        lambda event: isinstance(event, LinkEnded) and event.link == 2, lambda: signal.raise_signal(signal.SIGTERM)
    )
    outcome, _ = run_here(spec, sinks=[term])
    assert (outcome.status, outcome.exit_code) == ("interrupted", 75)
    assert_the_same(spec, resume_here(home(spec))[0], undisturbed)


@posix
def test_a_second_campaign_in_the_folder_is_refused_and_told_by_whom(oracle: Oracle) -> None:
    with supervisor(campaign_of(oracle.output(), "train:hold:8")) as first:
        first.until(saved_in(link_home(runs.load_spec(first.run_dir), 1), 5), "step 5 was saved")
        with supervisor(campaign_of(oracle.output())) as second:
            assert second.wait() == 1  # an uncaught BusyError; the command line makes 75 of it
            assert f"is in use by run {first.run_dir.run_id}" in second.output()
        first.signal(signal.SIGTERM)
        assert first.wait() == 75


# --- what is asked of a campaign ------------------------------------------------------------------------------------


def test_a_run_of_a_campaign_is_not_resumed_by_itself(oracle: Oracle) -> None:
    spec = campaign_of(oracle.output(), "train-2:nan:8")
    run_here(spec)
    with pytest.raises(UserInputError) as caught:
        supervise(link_home(spec, 2), resumed=True)
    assert caught.value.code == "STATE_RUN_OF_CAMPAIGN"
    assert spec.run_id[:8] in str(caught.value.suggestion)


def test_a_finished_run_of_a_campaign_names_its_campaign_when_it_is_to_be_resumed(oracle: Oracle) -> None:
    spec = campaign_of(oracle.output(), runs=1)
    run_here(spec)
    with pytest.raises(UserInputError) as caught:
        supervising.go_on(Screen(), link_home(spec, 1), detach=False, wait=False)
    assert caught.value.code == "STATE_RUN_OF_CAMPAIGN"
    assert spec.run_id[:8] in str(caught.value.suggestion)


def test_a_finished_campaign_is_finished_until_it_gets_one_more_run(oracle: Oracle) -> None:
    spec = campaign_of(oracle.output(), runs=2)
    run_here(spec)
    before = published(spec)
    with pytest.raises(UserInputError) as caught:
        resume_here(home(spec))
    assert caught.value.code == "STATE_RUN_FINISHED"
    extend(home(spec), lambda: Extension(data_set(oracle.home, 3), "week-3"))
    assert history.list_rows(oracle.output())[-1].status == "interrupted"
    outcome, story = resume_here(home(spec))
    assert (outcome.status, outcome.step) == ("completed", 3 * STEPS)
    assert [(event.link, event.links, event.name) for event in story.of(LinkStarted)] == [(3, 3, "week-3")]
    assert published(spec) != before


def test_a_campaign_that_was_extended_comes_to_what_it_would_have_come_to_at_once(
    oracle: Oracle, undisturbed: Ended
) -> None:
    spec = campaign_of(oracle.output(), runs=2)
    run_here(spec)
    extend(home(spec), lambda: Extension(data_set(oracle.home, 3), "week-3"))
    assert_the_same(spec, resume_here(home(spec))[0], undisturbed)


def test_nobody_extends_what_is_no_campaign(oracle: Oracle) -> None:
    spec = campaign_of(oracle.output(), runs=1)
    run_here(spec)
    with pytest.raises(UserInputError):
        extend(link_home(spec, 1), lambda: Extension(data_set(oracle.home, 2), "week-2"))


def test_auto_publishes_the_merge_that_scores_best(oracle: Oracle) -> None:
    spec = campaign_of(oracle.output(), runs=2, merge="auto")
    outcome, story = run_here(spec)
    chosen = story.of(LinkMerged)[-1]
    assert (outcome.status, chosen.chosen) == ("completed", True)
    tried = {s.candidate: s for s in story.of(LinkScored)[-1].scores if s.candidate.startswith("rule:")}
    assert {name.removeprefix("rule:") for name in tried} == {"slao", "slao-product", "ema", "average", "ties", "dare", "none"}  # fmt: skip
    merged = Path(chosen.folder) / "merged" / "adapter_model.safetensors"
    assert published(spec) == merged.read_bytes()
    scored = story.of(LinkScored)[-1].scores
    assert {entry.name for entry in home(spec).merges.iterdir()} == {"run-001", "run-002", Path(chosen.folder).name}
    mine = [s.loss for s in scored if s.candidate == "merged"]
    assert mine == [s.loss for s in scored if s.candidate == f"rule:{chosen.rule}"]


def test_sequential_training_without_a_merge_is_what_none_does(oracle: Oracle) -> None:
    spec = campaign_of(oracle.output(), runs=2, merge="none")
    run_here(spec)
    assert published(spec) == (link_home(spec, 2).adapter / "adapter_model.safetensors").read_bytes()


def test_who_follows_the_campaigns_journal_sees_what_its_own_watchers_see(oracle: Oracle) -> None:
    spec = campaign_of(oracle.output(), "train-2:sigkill:7")
    _, story = run_here(spec)
    followed = Follower(home(spec).events).poll()

    def seen(events: list[Event]) -> list[tuple[str, str, int]]:
        return [(type(e).__name__, e.run_id, e.step) for e in events if isinstance(e, Step | CheckpointCommitted)]

    assert seen(followed) == seen(story.events)
    assert [e for e in followed if isinstance(e, LinkEnded | LinkMerged)] == [
        e for e in story.events if isinstance(e, LinkEnded | LinkMerged)
    ]


# --- what lies on the disk ------------------------------------------------------------------------------------------


def flip(*paths: Path) -> None:
    """One bit of the last byte of each."""
    for path in paths:
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def test_of_a_finished_run_its_adapter_is_kept_and_of_a_merge_before_the_last_what_it_says_of_itself(
    oracle: Oracle,
) -> None:
    spec = campaign_of(oracle.output())
    run_here(spec)
    for number in (1, 2, 3):
        assert checkpoints.steps(link_home(spec, number)) == []
        assert verify_dir(link_home(spec, number).adapter).step == STEPS
    kept = [sorted(entry.name for entry in home(spec).merge(number).iterdir()) for number in (1, 2, 3)]
    assert kept[:2] == [["combine.json"]] * 2
    assert {"merged", "next", "combine.json"} <= set(kept[2])


def test_checkpoints_that_a_killed_supervisor_left_of_a_finished_run_go_at_the_next_start(
    oracle: Oracle, undisturbed: Ended
) -> None:
    spec = campaign_of(oracle.output(), *(f"combine-001:error:1:{attempt}" for attempt in (1, 2, 3)))
    kept = oracle.home / "kept"
    keeps = At(
        lambda event: isinstance(event, LinkEnded), lambda: shutil.copytree(link_home(spec, 1).checkpoints, kept)
    )
    run_here(spec, sinks=[keeps])
    shutil.copytree(kept, link_home(spec, 1).checkpoints, dirs_exist_ok=True)
    assert checkpoints.steps(link_home(spec, 1))
    assert_the_same(spec, resume_here(home(spec))[0], undisturbed)
    assert checkpoints.steps(link_home(spec, 1)) == []


def test_a_finished_run_whose_adapter_is_damaged_keeps_its_checkpoints(oracle: Oracle) -> None:
    spec = campaign_of(oracle.output(), runs=1)
    damages = At(lambda event: isinstance(event, LinkEnded), lambda: flip(link_home(spec, 1).adapter / WEIGHTS))
    run_here(spec, sinks=[damages])
    assert checkpoints.steps(link_home(spec, 1))


@pytest.mark.parametrize("number", [2, 3])
def test_merged_weights_that_changed_on_the_disk_are_merged_again_and_never_published(
    oracle: Oracle, undisturbed: Ended, number: int
) -> None:
    spec = campaign_of(oracle.output(), evaluate=False)
    damages = At(
        lambda event: isinstance(event, LinkMerged) and event.link == number,
        lambda: flip(*(home(spec).merge(number) / part / WEIGHTS for part in ("merged", "next"))),
    )
    outcome, story = run_here(spec, sinks=[damages])
    assert outcome.status == "completed"
    assert published(spec) == undisturbed.weights
    assert sum(f"the merge after run {number} is not as it was written" in e.text for e in story.of(Noticed)) == 1


@pytest.mark.parametrize("journaled", [False, True])
def test_a_merge_whose_record_is_torn_is_made_again(oracle: Oracle, undisturbed: Ended, *, journaled: bool) -> None:
    spec = campaign_of(oracle.output(), "train-3:nan:3", evaluate=False)
    run_here(spec)
    record = home(spec).merge(2) / "combine.json"
    record.write_bytes(record.read_bytes()[:50])
    if not journaled:
        lines = home(spec).events.read_text(encoding="utf-8").splitlines(keepends=True)
        (last,) = [at for at, line in enumerate(lines) if '"link_merged"' in line and '"link":2' in line]
        home(spec).events.write_text("".join(lines[:last]), encoding="utf-8")
    assert resume_here(home(spec))[0].status == "completed"
    assert published(spec) == undisturbed.weights


def test_nothing_of_an_export_counts_as_done_after_a_campaign_was_extended(oracle: Oracle) -> None:
    past, stages = Past(), ("train", "preflight", "convert")
    for stage in stages:
        past.event(StageEnded(time=0.0, run_id="r", stage=stage))
    past.event(CampaignExtended(time=0.0, run_id="r", data=data_set(oracle.home, 1), name="one more"))
    assert not [stage for stage in stages if past.has(stage, None)]


# --- the card -------------------------------------------------------------------------------------------------------


def card(folder: Path) -> Path:
    script = folder / "card.json"
    script.write_text(json.dumps({"celsius": [60] * 2000, "interval": 0.1}))
    return script


def test_the_card_stays_reserved_from_the_first_run_to_the_last(oracle: Oracle) -> None:
    holders: list[str] = []

    class Looks(Story):
        def event(self, event: Event) -> None:
            if isinstance(event, LinkEnded | LinkMerged):
                holders.extend(holder.run_id for path in _locks() if (holder := locks.holder_of(path)) is not None)

    spec = campaign_of(oracle.output(), runs=2)
    outcome = supervise(runs.create(spec), [Looks()], gpu_script=card(oracle.home))
    assert outcome.status == "completed"
    assert holders == [spec.run_id] * 4
    assert [locks.holder_of(path) for path in _locks()] == [None]


def _locks() -> list[Path]:
    return sorted(path for path in userstate.state_dir().glob("*.lock") if not path.name.startswith("export-"))


def test_a_campaign_whose_card_is_taken_never_began(oracle: Oracle) -> None:
    spec, script = campaign_of(oracle.output(), runs=2), card(oracle.home)
    supervise(runs.create(campaign_of(oracle.output("other"), runs=1)), gpu_script=script)
    (lock,) = _locks()
    run_dir = runs.create(spec)
    with locks.hold(lock, "another", "the GPU"), pytest.raises(BusyError), runs.beginning(run_dir):
        supervise(run_dir, gpu_script=script)
    assert not run_dir.path.exists()
    assert not link_home(spec, 1).path.exists()
    assert history.list_rows(oracle.output()) == []
