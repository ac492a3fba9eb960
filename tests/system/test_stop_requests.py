"""A run that another process asks to stop ends as it would for a signal, on every system; what was asked of others it ignores."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from backpropagate.api.stopping import stopped
from backpropagate.events import StopRequested
from backpropagate.keep import locks, runs, stop_requests
from backpropagate.keep.locks import Holder
from backpropagate.keep.stop_requests import AT_ONCE, SAVING, StopRequest
from backpropagate.outcome import Outcome
from backpropagate_protocol.errors import BackpropagateError, UserInputError
from tests.conftest import Oracle
from tests.system.campaigns import campaign_of, home, link_home
from tests.system.supervised import Supervisor, is_gone, resume_here, supervisor, toy_spec
from tests.waiting import eventually

pytestmark = pytest.mark.slow


def holder(run: Supervisor) -> Holder:
    found = locks.holder_of(run.run_dir.output.lock)
    assert found is not None
    return found


def test_a_run_that_is_asked_to_stop_saves_and_goes_on_with_the_same_samples(
    oracle: Oracle, undisturbed: Outcome
) -> None:
    with supervisor(toy_spec(oracle.output(), "hold:12")) as run:
        run.until_saved(10)
        first = holder(run)
        row = stopped(run.run_dir)
        assert row is not None
        assert (row.status, row.code, row.exit_code) == ("interrupted", "RUNTIME_TRAINING_ABORTED", 75)
        assert row.failure_reason == f"stopped by {SAVING}; step {row.steps} is kept"
        assert row.steps > 10
        assert run.wait() == 75, run.output()
        assert {asked.save for asked in run.of(StopRequested)} == {True}
    stop_requests.ask(run.run_dir, StopRequest(holder=first, now=True))  # nobody is left to hear it
    outcome, story = resume_here(run.run_dir)
    assert (outcome.status, outcome.order, outcome.final_loss) == ("completed", undisturbed.order, undisturbed.final_loss)  # fmt: skip
    assert story.of(StopRequested) == []
    assert stop_requests.is_heard(run.run_dir)
    with pytest.raises(UserInputError) as caught:
        stopped(run.run_dir)
    assert (caught.value.code, caught.value.suggestion) == ("STATE_RUN_NOT_RUNNING", "It is complete.")


def test_who_asks_twice_is_as_patient_as_before_and_who_wants_it_at_once_says_so(oracle: Oracle) -> None:
    with supervisor(toy_spec(oracle.output(), "hang:12", grace=150.0)) as run:
        run.until_saved(10)
        child = run.child()
        for _ in range(2):
            assert stopped(run.run_dir, wait=False) is None
            run.until(lambda: stop_requests.is_heard(run.run_dir), "it was heard")
        assert [asked.save for asked in run.of(StopRequested)] == [True]
        row = stopped(run.run_dir, now=True)
        assert row is not None
        assert (row.steps, row.failure_reason) == (10, f"stopped by {SAVING}; step 10 is kept")
        assert [(asked.reason, asked.save) for asked in run.of(StopRequested)] == [(SAVING, True), (AT_ONCE, False)]
        assert run.wait() == 75
        assert is_gone(child)


def test_a_run_is_stopped_before_its_first_step(oracle: Oracle) -> None:
    with supervisor(toy_spec(oracle.output(), "hang:0")) as run:
        run.child()
        row = stopped(run.run_dir)
        assert row is not None
        assert (row.status, row.steps, run.wait()) == ("interrupted", 0, 75)


def test_a_supervisor_that_does_not_hear_is_told_of_and_hears_it_when_it_goes_on(oracle: Oracle) -> None:
    if sys.platform == "win32":
        pytest.skip("no process can be frozen by a signal there")
    with supervisor(toy_spec(oracle.output(), "hold:12")) as run:
        run.until_saved(10)
        os.kill(run.process.pid, signal.SIGSTOP)
        with pytest.raises(BackpropagateError) as caught:
            stopped(run.run_dir, heard_within=0.2)
        assert caught.value.code == "STATE_STOP_PENDING"
        assert f"process {run.process.pid}" in caught.value.message
        os.kill(run.process.pid, signal.SIGCONT)
        assert run.wait() == 75
        assert [asked.reason for asked in run.of(StopRequested)] == [SAVING]


def test_a_campaign_is_stopped_as_a_whole_and_not_by_one_of_its_runs(oracle: Oracle) -> None:
    spec = campaign_of(oracle.output(), "train:hold:8", runs=2)
    with supervisor(spec) as run:
        eventually(link_home(spec, 1).checkpoint(5).is_dir, "step 5 of the first run was saved")
        with pytest.raises(UserInputError) as caught:
            stopped(link_home(spec, 1))
        assert caught.value.code == "STATE_RUN_OF_CAMPAIGN"
        assert runs.stopping(home(spec)) in caught.value.suggestion
        row = stopped(run.run_dir)
        assert row is not None
        assert (row.session_kind, row.status, run.wait()) == ("multi_run", "interrupted", 75)
