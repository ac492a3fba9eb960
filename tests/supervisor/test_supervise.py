"""What a supervisor does beside training: watchers that fail, an index that cannot be written, a run taken up again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from backpropagate.drive.supervise import supervise
from backpropagate.events import AttemptStarted, Event, Noticed, PhaseEntered, RunCreated, RunEnded, RunResumed
from backpropagate.keep import history, runs, userstate
from backpropagate_protocol.errors import RunNotFoundError
from tests.conftest import Oracle
from tests.system.supervised import Story, resume_here, run_here, toy_spec

pytestmark = pytest.mark.slow


class Failing:
    """A watcher that has a bug."""

    def __init__(self) -> None:
        self.asked = 0

    def event(self, event: Event) -> None:
        self.asked += 1
        raise ZeroDivisionError

    def close(self) -> None:
        raise ZeroDivisionError


def test_a_watcher_that_fails_is_asked_no_more_and_stops_nothing(oracle: Oracle) -> None:
    failing, story = Failing(), Story()
    outcome = supervise(runs.create(toy_spec(oracle.output())), [failing, story])
    assert outcome.status == "completed"
    assert failing.asked == 1
    assert len(story.of(RunEnded)) == 1


def test_an_index_that_cannot_be_written_costs_one_warning(oracle: Oracle) -> None:
    oracle.output().history.mkdir(parents=True)
    outcome, story = run_here(toy_spec(oracle.output()))
    assert outcome.status == "completed"
    warnings = [notice.text for notice in story.of(Noticed) if "run history cannot be written" in notice.text]
    assert len(warnings) == 1


def test_the_row_and_the_journal_tell_the_same(oracle: Oracle) -> None:
    spec = toy_spec(oracle.output(), "oom:12")
    outcome, _ = run_here(spec)
    (row,) = history.list_rows(oracle.output())
    again = history.show(oracle.output().run(spec.run_id))
    assert msgspec.json.encode(row) == msgspec.json.encode(again)
    assert (row.status, row.final_loss, row.steps) == ("completed", outcome.final_loss, outcome.step)
    assert (row.recoveries, row.micro_batch_history) == (1, [(0, 8), (10, 4)])
    assert row.packages["python"]
    assert row.dataset_digest
    assert row.loss_history[-1][0] == outcome.step


def test_the_finished_adapter_is_where_the_next_command_looks_for_it(oracle: Oracle) -> None:
    outcome, _ = run_here(toy_spec(oracle.output()))
    run = oracle.output().run(outcome.run_id)
    assert outcome.adapter == str(run.adapter)
    kept = {path.name: path.read_bytes() for path in run.adapter.iterdir() if path.name != "manifest.json"}
    assert {path.name: path.read_bytes() for path in oracle.output().lora.iterdir()} == kept


def test_a_resume_keeps_the_micro_batch_and_counts_attempts_on(oracle: Oracle) -> None:
    spec = toy_spec(oracle.output(), "oom:7", "device_lost:12:2")
    lost, _ = run_here(spec)
    assert lost.exit_code == 69
    outcome, story = resume_here(oracle.output().run(spec.run_id))
    assert outcome.status == "completed"
    assert [(a.attempt, a.micro_batch, a.resume_step) for a in story.of(AttemptStarted)] == [(3, 4, 10)]
    assert [event.previous for event in story.of(RunResumed)] == ["failed"]
    assert not story.of(RunCreated)
    assert "tokenize" not in [phase.phase for phase in story.of(PhaseEntered)]


def test_gradient_checkpointing_that_a_fault_turned_on_is_told_and_outlives_the_supervisor(oracle: Oracle) -> None:
    spec = toy_spec(oracle.output(), "oom:7", "oom:8:2", "device_lost:12:3")
    train = msgspec.structs.replace(spec.train, batch_size=2)
    spec = msgspec.structs.replace(spec, train=train)
    lost, first = run_here(spec)
    assert lost.exit_code == 69
    assert [a.gradient_checkpointing for a in first.of(AttemptStarted)] == [None, None, True]
    outcome, second = resume_here(oracle.output().run(spec.run_id))
    assert outcome.status == "completed"
    assert [(a.micro_batch, a.gradient_checkpointing) for a in second.of(AttemptStarted)] == [(1, True)]
    (row,) = history.list_rows(oracle.output())
    assert row.hyperparameters["gradient_checkpointing"] is True


def test_a_run_that_does_not_exist_is_not_found(oracle: Oracle) -> None:
    with pytest.raises(RunNotFoundError):
        supervise(oracle.output().run("nothing"))


def test_a_first_micro_batch_that_does_not_divide_is_made_smaller(oracle: Oracle) -> None:
    spec = toy_spec(oracle.output())
    train = msgspec.structs.replace(spec.train, effective_batch=12, batch_size=5)
    _, story = run_here(msgspec.structs.replace(spec, train=train))
    assert [(a.micro_batch, a.accumulation) for a in story.of(AttemptStarted)] == [(4, 3)]


_WHERE = """
from backpropagate.keep import userstate
userstate.remember("card|model", 2)  # says nothing if there is no place for it
print(userstate.state_dir())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="every user has a folder for such files there")
def test_without_a_home_that_takes_files_the_users_state_is_among_the_temporary_files(tmp_path: Path) -> None:
    no_home = tmp_path / "home"
    no_home.write_text("a file, in which no folder can be made")

    def ask() -> subprocess.CompletedProcess[str]:
        env = {"HOME": str(no_home), "TMPDIR": str(tmp_path)}
        return subprocess.run([sys.executable, "-P", "-c", _WHERE], env=env, capture_output=True, text=True)

    folder = Path(ask().stdout.strip())
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    (folder / "fitted.json").unlink()
    folder.rmdir()
    folder.symlink_to(tmp_path)
    assert "belongs to somebody else" in ask().stderr


def test_what_fitted_is_forgotten_rather_than_trusted_when_the_file_is_damaged(oracle: Oracle) -> None:
    userstate.remember("card|model", 2)
    assert userstate.fitted("card|model") == 2
    (userstate.state_dir() / "fitted.json").write_text("{")
    assert userstate.fitted("card|model") is None
    userstate.remember("card|model", 4)
    assert userstate.fitted("card|model") == 4
