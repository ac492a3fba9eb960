"""A run that is asked to stop keeps its work, says how to go on, and goes on exactly where it was."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from backpropagate.drive.supervise import supervise
from backpropagate.events import Event, RunCreated, StopRequested
from backpropagate.keep import history, runs
from backpropagate.outcome import Outcome
from backpropagate_protocol.errors import UserInputError
from tests.conftest import Oracle
from tests.system.supervised import Story, Supervisor, is_gone, resume_here, run_here, supervisor, toy_spec
from tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_saves_the_step_and_a_resume_sees_the_same_samples(
    oracle: Oracle, undisturbed: Outcome, number: signal.Signals, code: int
) -> None:
    with supervisor(toy_spec(oracle.output(), "hold:12")) as run:
        run.until_saved(10)
        run.signal(number)
        assert run.wait() == code
        assert run.output() == ""
        ended = run.ended()
        assert (ended.status, ended.exit_code, ended.code) == ("interrupted", code, "RUNTIME_TRAINING_ABORTED")
        assert ended.step >= 10
    outcome, _ = resume_here(run.run_dir)
    assert (outcome.status, outcome.order) == ("completed", undisturbed.order)
    assert outcome.final_loss == undisturbed.final_loss


def test_a_run_ends_though_the_disk_does_not_give_its_checkpoint(oracle: Oracle) -> None:
    """A pipe that nobody writes to stands for a share that is gone: who reads from it waits for ever."""
    run_dir = runs.create(toy_spec(oracle.output()))
    folder = run_dir.checkpoint(5)
    folder.mkdir(parents=True)
    os.mkfifo(folder / "manifest.json")
    with Supervisor(run_dir) as run:
        run.until(lambda: run.of(RunCreated), "it began")
        run.signal(signal.SIGTERM)
        assert run.wait() == 75, run.output()
        assert (run.ended().status, run.output()) == ("interrupted", "")


def test_a_second_signal_kills_at_once(oracle: Oracle) -> None:
    with supervisor(toy_spec(oracle.output(), "hang:12")) as run:
        run.until_saved(10)
        child = run.child()
        run.signal(signal.SIGINT)
        run.until(lambda: len(run.of(StopRequested)) == 1, "the first request was taken")
        run.signal(signal.SIGINT)
        assert run.wait() == 130
        assert is_gone(child)
        assert run.ended().step == 10


def test_a_child_that_ignores_the_stop_is_ended_by_the_ladder(oracle: Oracle) -> None:
    with supervisor(toy_spec(oracle.output(), "hang_gil:12", grace=1.0)) as run:
        run.until_saved(10)
        run.signal(signal.SIGTERM)
        assert run.wait() == 75
        assert run.ended().step == 10


def test_a_closed_terminal_does_not_stop_the_run(oracle: Oracle) -> None:
    with supervisor(toy_spec(oracle.output(), "hold:12")) as run:
        run.until_saved(10)
        run.signal(signal.Signals["SIGHUP"])
        run.signal(signal.SIGTERM)  # it is this one that does
        assert run.wait() == 75
        assert [asked.reason for asked in run.of(StopRequested)] == ["sigterm"]


@pytest.mark.parametrize(("line", "code"), [(b"stop\n", 130), (b"", 75)])
def test_an_owner_who_stops_the_run_or_goes_away_leaves_it_resumable(
    oracle: Oracle, undisturbed: Outcome, line: bytes, code: int
) -> None:
    with supervisor(toy_spec(oracle.output(), "hold:12"), owner=True) as run:
        run.until_saved(10)
        run.tell(line)
        assert run.process.stdin is not None
        run.process.stdin.close()
        assert run.wait() == code
        assert run.ended().step >= 10
    assert resume_here(run.run_dir)[0].order == undisturbed.order


def test_an_owner_can_kill_the_run(oracle: Oracle) -> None:
    with supervisor(toy_spec(oracle.output(), "hang:12"), owner=True) as run:
        run.until_saved(10)
        run.tell(b"kill\n")
        assert run.wait() == 130
        assert run.ended().step == 10


def test_a_stop_before_the_first_step_ends_the_run_with_nothing_to_keep(oracle: Oracle) -> None:
    with supervisor(toy_spec(oracle.output(), "hang:0")) as run:
        run.child()
        run.signal(signal.SIGTERM)
        assert run.wait() == 75
        assert run.ended().step == 0


class TermAtOnce(Story):
    """Sends SIGTERM to the supervisor while it is announcing the run."""

    def event(self, event: Event) -> None:
        super().event(event)
        if isinstance(event, RunCreated):
            signal.raise_signal(signal.SIGTERM)


def test_a_signal_before_the_first_child_is_not_lost(oracle: Oracle) -> None:
    outcome = supervise(runs.create(toy_spec(oracle.output())), [TermAtOnce()])
    assert (outcome.status, outcome.exit_code, outcome.step) == ("interrupted", 75, 0)


def test_a_finished_run_is_not_run_again(oracle: Oracle) -> None:
    spec = toy_spec(oracle.output())
    run_here(spec)
    with pytest.raises(UserInputError) as caught:
        resume_here(oracle.output().run(spec.run_id))
    assert caught.value.code == "STATE_RUN_FINISHED"


def test_a_second_supervisor_is_refused_at_once_and_names_the_first(oracle: Oracle) -> None:
    with supervisor(toy_spec(oracle.output(), "hold:12")) as first:
        first.until_saved(10)
        with supervisor(toy_spec(oracle.output())) as second:
            assert second.wait() == 1  # an uncaught BusyError; the command line makes 75 of it
            assert f"STATE_BUSY]: the output folder {oracle.output().path} is in use by run" in second.output()
            assert first.run_dir.run_id in second.output()
            assert str(first.process.pid) in second.output()
        assert [row.status for row in history.list_rows(oracle.output())] == ["running"]
        first.signal(signal.SIGTERM)
        assert first.wait() == 75


def test_a_second_supervisor_that_waits_begins_when_the_first_ends(oracle: Oracle) -> None:
    with supervisor(toy_spec(oracle.output(), "hold:12")) as first:
        first.until_saved(10)
        with supervisor(toy_spec(oracle.output(), wait_for_lock=True)) as second:
            first.signal(signal.SIGTERM)
            assert first.wait() == 75
            assert second.wait() == 0
    assert [row.status for row in history.list_rows(oracle.output())] == ["completed", "interrupted"]


def test_a_stopped_supervisor_does_not_stop_the_training(oracle: Oracle, undisturbed: Outcome) -> None:
    with supervisor(toy_spec(oracle.output(), toy="toy?step_seconds=0.02", hang_floor=1.0)) as run:
        run.until_saved(5)
        run.signal(signal.Signals["SIGSTOP"])
        last = run.run_dir.checkpoint(30)
        eventually(last.is_dir, "the child went on to the last checkpoint")
        run.signal(signal.Signals["SIGCONT"])
        assert run.wait() == 0
        assert (run.ended().order, len(run.of(StopRequested))) == (undisturbed.order, 0)


def test_killed_supervisors_child_is_gone_and_the_run_goes_on_where_it_was(
    oracle: Oracle, undisturbed: Outcome
) -> None:
    with supervisor(toy_spec(oracle.output(), "hold:12")) as run:
        run.until_saved(10)
        child = run.child()
        run.process.kill()
        run.wait()
        eventually(lambda: is_gone(child), "the child died with its parent")
    assert [row.status for row in history.list_rows(oracle.output())] == ["interrupted"]
    with Supervisor(run.run_dir) as again:
        assert again.wait() == 0, again.output()
        assert (again.ended().order, again.ended().samples_seen) == (undisturbed.order, undisturbed.samples_seen)


def test_a_child_that_holds_the_gil_dies_with_its_supervisor(oracle: Oracle) -> None:
    if sys.platform != "linux":
        pytest.skip("elsewhere the child's lease ends it, after a while")
    with supervisor(toy_spec(oracle.output(), "hang_gil:12")) as run:
        run.until_saved(10)
        child = run.child()
        run.process.kill()
        run.wait()
        eventually(lambda: is_gone(child), "the child died with its parent")
    assert resume_here(run.run_dir)[0].status == "completed"
