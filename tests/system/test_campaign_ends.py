"""A campaign whose supervisor was killed or stopped goes on, and comes to the same merged adapter."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

import pytest

from backpropagate.events import CheckpointCommitted, LinkEnded, LinkStarted, StageStarted, Step
from backpropagate.keep import history, journal, runs
from backpropagate_protocol.rundir import RunDir
from tests.conftest import Oracle
from tests.system.campaigns import Ended, assert_the_same, campaign_of, home, link_home
from tests.system.supervised import At, Supervisor, resume_here, run_here, supervisor

pytestmark = pytest.mark.slow
posix = pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")


def saved_in(run_dir: RunDir, step: int) -> Callable[[], bool]:
    return lambda: any(isinstance(e, CheckpointCommitted) and e.step >= step for e in journal.read(run_dir.events))


def in_stage(run: Supervisor, name: str) -> Callable[[], bool]:
    return lambda: any(event.stage == name for event in run.of(StageStarted))


@posix
def test_a_supervisor_that_is_killed_in_a_run_is_followed_by_one_that_goes_on_in_that_run(
    oracle: Oracle, undisturbed_campaign: Ended
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
    assert_the_same(spec, outcome, undisturbed_campaign)


def test_a_supervisor_that_is_killed_while_it_makes_a_runs_folder_leaves_nothing_in_the_way(
    oracle: Oracle, undisturbed_campaign: Ended
) -> None:
    spec = campaign_of(oracle.output())
    link_home(spec, 2).path.mkdir(parents=True)
    outcome, _ = run_here(spec)
    assert_the_same(spec, outcome, undisturbed_campaign)


@posix
@pytest.mark.parametrize("stage", ["combine-002", "evaluate-002"])
def test_a_supervisor_that_is_killed_in_a_stage_is_followed_by_one_that_does_it(
    oracle: Oracle, undisturbed_campaign: Ended, stage: str
) -> None:
    spec = campaign_of(oracle.output(), f"{stage}:hang:1")
    with supervisor(spec) as run:
        run.until(in_stage(run, stage), f"{stage} began")
        run.process.kill()
        run.wait()
    outcome, story = resume_here(home(spec))
    assert [event.link for event in story.of(LinkStarted)] == [3]
    assert_the_same(spec, outcome, undisturbed_campaign)


@posix
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_saves_the_run_that_is_under_way_and_a_resume_goes_on_there(
    oracle: Oracle, undisturbed_campaign: Ended, number: signal.Signals, code: int
) -> None:
    spec = campaign_of(oracle.output(), "train-2:hold:8")
    with supervisor(spec) as run:
        run.until(saved_in(link_home(spec, 2), 5), "step 5 of the second run was saved")
        run.signal(number)
        assert run.wait() == code
        last = run.ended()
        assert (last.status, last.code, last.kind) == ("interrupted", "RUNTIME_TRAINING_ABORTED", "campaign")
        assert f"backprop resume {spec.run_id[:8]}" in last.suggestion
    assert_the_same(spec, resume_here(home(spec))[0], undisturbed_campaign)


@posix
def test_a_signal_between_two_children_is_not_lost(oracle: Oracle, undisturbed_campaign: Ended) -> None:
    spec = campaign_of(oracle.output())
    term = At(
        lambda event: isinstance(event, LinkEnded) and event.link == 2, lambda: signal.raise_signal(signal.SIGTERM)
    )
    outcome, _ = run_here(spec, sinks=[term])
    assert (outcome.status, outcome.exit_code) == ("interrupted", 75)
    assert_the_same(spec, resume_here(home(spec))[0], undisturbed_campaign)


@posix
def test_a_second_campaign_in_the_folder_is_refused_and_told_by_whom(oracle: Oracle) -> None:
    with supervisor(campaign_of(oracle.output(), "train:hold:8")) as first:
        first.until(saved_in(link_home(runs.load_spec(first.run_dir), 1), 5), "step 5 was saved")
        with supervisor(campaign_of(oracle.output())) as second:
            assert second.wait() == 1  # an uncaught BusyError; the command line makes 75 of it
            assert f"is in use by run {first.run_dir.run_id}" in second.output()
        first.signal(signal.SIGTERM)
        assert first.wait() == 75
