"""A campaign under supervision: its runs, its merges, what is asked of it later, and the card that it holds."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

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
    StageEnded,
    Step,
)
from backpropagate.keep import history, locks, runs, userstate
from backpropagate.keep.journal import Follower
from backpropagate.keep.past import Past
from backpropagate.screen import Screen
from backpropagate.wishes.campaign_again import Extension
from backpropagate_protocol.errors import BusyError, UserInputError
from tests.conftest import Oracle
from tests.system.campaigns import STEPS, Ended, assert_the_same, campaign_of, data_set, home, link_home, published
from tests.system.supervised import Story, resume_here, run_here

pytestmark = pytest.mark.slow


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


def test_a_campaign_whose_scores_do_not_get_better_ends_early_with_what_it_has(oracle: Oracle) -> None:
    spec = campaign_of(oracle.output(), runs=4, early_stop=1)
    spec = msgspec.structs.replace(spec, train=msgspec.structs.replace(spec.train, learning_rate=0.0))
    outcome, story = run_here(spec)
    assert [event.link for event in story.of(LinkStarted)] == [1, 2]
    assert (outcome.status, outcome.step, outcome.total_steps) == ("completed", 2 * STEPS, 2 * STEPS)
    published(spec)


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
    oracle: Oracle, undisturbed_campaign: Ended
) -> None:
    spec = campaign_of(oracle.output(), runs=2)
    run_here(spec)
    extend(home(spec), lambda: Extension(data_set(oracle.home, 3), "week-3"))
    assert_the_same(spec, resume_here(home(spec))[0], undisturbed_campaign)


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
