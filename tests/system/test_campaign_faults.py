"""A campaign comes to the same merged adapter, whatever happens to its children and to its files on the way."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from backpropagate import checkpoints
from backpropagate.events import LinkEnded, LinkMerged, LinkScored, LinkStarted, Noticed, Recovering
from backpropagate_protocol.durable import verify_dir
from tests.conftest import Oracle
from tests.system.campaigns import STEPS, WEIGHTS, Ended, assert_the_same, campaign_of, home, link_home, published
from tests.system.supervised import At, resume_here, run_here

pytestmark = pytest.mark.slow


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
def test_a_fault_in_any_link_costs_only_time(oracle: Oracle, undisturbed_campaign: Ended, fault: str) -> None:
    faults = [fault, "train-3:sigkill:7"] if "torn" in fault else [fault]
    spec = campaign_of(oracle.output(), *faults)
    outcome, story = run_here(spec)
    assert outcome.recoveries == len(story.of(Recovering)) > 0
    assert_the_same(spec, outcome, undisturbed_campaign)


def test_a_run_that_fails_for_good_ends_the_campaign_with_its_code_and_the_campaign_goes_on_with_it(
    oracle: Oracle, undisturbed_campaign: Ended
) -> None:
    spec = campaign_of(oracle.output(), "train-2:nan:8")
    outcome, _ = run_here(spec)
    assert (outcome.status, outcome.code) == ("failed", "RUNTIME_LOSS_DIVERGED")
    assert outcome.message.startswith("run 2 of 3 (week-2): ")
    assert (outcome.step, outcome.total_steps, outcome.adapter) == (STEPS + 5, 3 * STEPS, None)
    again, story = resume_here(home(spec))
    assert [event.link for event in story.of(LinkStarted)] == [2, 3]
    assert_the_same(spec, again, undisturbed_campaign)


def test_an_evaluation_that_fails_for_good_is_told_and_the_campaign_goes_on(
    oracle: Oracle, undisturbed_campaign: Ended
) -> None:
    spec = campaign_of(oracle.output(), "evaluate-002:error:1:0")
    outcome, story = run_here(spec)
    assert_the_same(spec, outcome, undisturbed_campaign)
    assert [event.link for event in story.of(LinkScored)] == [1, 3]
    assert any(event.text.startswith("run 2 is not scored") for event in story.of(Noticed))


def test_an_evaluation_that_fails_for_good_ends_a_campaign_that_stops_by_it(oracle: Oracle) -> None:
    spec = campaign_of(oracle.output(), "evaluate-001:error:1", "evaluate-001:error:1:2", runs=2, early_stop=1)
    outcome, story = run_here(spec)
    assert (outcome.status, outcome.code, outcome.adapter) == ("failed", "RUNTIME_EVALUATION_FAILED", None)
    assert [event.link for event in story.of(LinkStarted)] == [1]
    again, _ = resume_here(home(spec))
    assert (again.status, again.step) == ("completed", 2 * STEPS)


def test_a_merge_that_fails_for_good_leaves_a_campaign_that_can_be_resumed(
    oracle: Oracle, undisturbed_campaign: Ended
) -> None:
    spec = campaign_of(oracle.output(), *(f"combine-002:error:1:{attempt}" for attempt in (1, 2, 3)))
    outcome, _ = run_here(spec)
    assert (outcome.status, outcome.exit_code, outcome.code) == ("failed", 2, "RUNTIME_SLAO_MERGE_FAILED")
    assert spec.run_id[:8] in outcome.suggestion
    assert_the_same(spec, resume_here(home(spec))[0], undisturbed_campaign)


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
    oracle: Oracle, undisturbed_campaign: Ended
) -> None:
    spec = campaign_of(oracle.output(), *(f"combine-001:error:1:{attempt}" for attempt in (1, 2, 3)))
    kept = oracle.home / "kept"
    keeps = At(
        lambda event: isinstance(event, LinkEnded), lambda: shutil.copytree(link_home(spec, 1).checkpoints, kept)
    )
    run_here(spec, sinks=[keeps])
    shutil.copytree(kept, link_home(spec, 1).checkpoints, dirs_exist_ok=True)
    assert checkpoints.steps(link_home(spec, 1))
    assert_the_same(spec, resume_here(home(spec))[0], undisturbed_campaign)
    assert checkpoints.steps(link_home(spec, 1)) == []


def test_a_finished_run_whose_adapter_is_damaged_keeps_its_checkpoints(oracle: Oracle) -> None:
    spec = campaign_of(oracle.output(), runs=1)
    damages = At(lambda event: isinstance(event, LinkEnded), lambda: flip(link_home(spec, 1).adapter / WEIGHTS))
    run_here(spec, sinks=[damages])
    assert checkpoints.steps(link_home(spec, 1))


@pytest.mark.parametrize("number", [2, 3])
def test_merged_weights_that_changed_on_the_disk_are_merged_again_and_never_published(
    oracle: Oracle, undisturbed_campaign: Ended, number: int
) -> None:
    spec = campaign_of(oracle.output(), evaluate=False)
    damages = At(
        lambda event: isinstance(event, LinkMerged) and event.link == number,
        lambda: flip(*(home(spec).merge(number) / part / WEIGHTS for part in ("merged", "next"))),
    )
    outcome, story = run_here(spec, sinks=[damages])
    assert outcome.status == "completed"
    assert published(spec) == undisturbed_campaign.weights
    assert sum(f"the merge after run {number} is not as it was written" in e.text for e in story.of(Noticed)) == 1


@pytest.mark.parametrize("journaled", [False, True])
def test_a_merge_whose_record_is_torn_is_made_again(
    oracle: Oracle, undisturbed_campaign: Ended, *, journaled: bool
) -> None:
    spec = campaign_of(oracle.output(), "train-3:nan:3", evaluate=False)
    run_here(spec)
    record = home(spec).merge(2) / "combine.json"
    record.write_bytes(record.read_bytes()[:50])
    if not journaled:
        lines = home(spec).events.read_text(encoding="utf-8").splitlines(keepends=True)
        (last,) = [at for at, line in enumerate(lines) if '"link_merged"' in line and '"link":2' in line]
        home(spec).events.write_text("".join(lines[:last]), encoding="utf-8")
    assert resume_here(home(spec))[0].status == "completed"
    assert published(spec) == undisturbed_campaign.weights
