"""A tracker has one run, and each step once, whatever ends its children or its supervisor; and it never stops a run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

import msgspec
import psutil
import pytest

from backpropagate.doors.process import RUN_ID_VARIABLE
from backpropagate.drive.supervise import supervise
from backpropagate.events import AttemptStarted, Noticed, Recovering, RunCreated, Step
from backpropagate.keep import journal, runs
from backpropagate.outcome import Outcome
from backpropagate.track import told
from backpropagate.track.trackers import Trackers
from backpropagate_protocol.catalogue import ExitCode
from backpropagate_protocol.rundir import OutputDir, RunDir
from backpropagate_protocol.spec import RunSpec
from tests.conftest import Oracle
from tests.system.campaigns import STEPS as LINK_STEPS
from tests.system.campaigns import campaign_of
from tests.system.supervised import STEPS, Supervisor, resume_here, run_here, toy_spec
from tests.system.tracked import (
    Curve,
    mlflow_runs,
    tensorboard_curve,
    tensorboard_notes,
    trackio_runs,
    wandb_runs,
)
from tests.waiting import eventually

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
PROJECT = "of-the-test"
LOSS = "train/loss"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # what is imported to read the trackers' files is not ours to mend
    pytest.mark.skipif(not all(map(find_spec, TRACKERS)), reason="not every tracker is installed"),
]


def tracked(spec: RunSpec, *trackers: str) -> RunSpec:
    return msgspec.structs.replace(spec, report_to=trackers, project=PROJECT, report_offline=True)


def attended(run_dir: RunDir) -> list[int]:
    """The processes that belong to a run and still live."""
    found = []
    for process in psutil.process_iter():
        try:
            marked = process.environ().get(RUN_ID_VARIABLE) == run_dir.run_id
            if marked and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (psutil.Error, OSError):
            continue
    return found


@dataclass(frozen=True)
class Story:
    """A run that lost a child, halved its batch, lost its supervisor, and was resumed to its end."""

    spec: RunSpec
    run_dir: RunDir
    outcome: Outcome

    @property
    def journal_curve(self) -> Curve:
        """What was measured first of each step, as the journal has it."""
        seen: dict[int, float] = {}
        for event in journal.read(self.run_dir.events):
            if isinstance(event, Step) and event.loss is not None:
                seen.setdefault(event.step, event.loss)
        return list(seen.items())

    def shows(self, curve: Curve) -> bool:
        """All of them, once, in order, as precisely as the tracker keeps numbers."""
        return [step for step, _ in curve] == [step for step, _ in self.journal_curve] and [
            value for _, value in curve
        ] == pytest.approx([value for _, value in self.journal_curve], rel=1e-6)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    home = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as variables:
        variables.setenv("TRACKIO_DIR", str(home / "trackio"))
        variables.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        spec = tracked(toy_spec(OutputDir(home / "out"), "sigkill:7", "oom:9:2", "hold:17:3"), *TRACKERS)
        with Supervisor(runs.create(spec)) as run:
            run.until_saved(15)
            run.process.kill()
            run.wait()
        eventually(lambda: not attended(run.run_dir), "the trackers saw that their supervisor was gone")
        outcome, _ = resume_here(run.run_dir)
        yield Story(spec, run.run_dir, outcome)


def test_the_run_was_as_disturbed_as_it_should_be(story: Story) -> None:
    seen = list(journal.read(story.run_dir.events))
    assert story.outcome.status == "completed"
    assert len([event for event in seen if isinstance(event, Recovering)]) == 2
    assert {event.micro_batch for event in seen if isinstance(event, AttemptStarted)} == {8, 4}
    assert max(step for step, _ in story.journal_curve) == STEPS
    assert len(story.journal_curve) < len([event for event in seen if isinstance(event, Step)])
    assert not [event for event in seen if isinstance(event, Noticed) and event.level == "warning"]


def test_tensorboard_shows_one_run_with_each_step_once(story: Story) -> None:
    assert story.shows(tensorboard_curve(story.run_dir, LOSS))
    notes = tensorboard_notes(story.run_dir)
    assert len([note for note in notes if note.startswith("fault at step")]) == 2
    assert len([note for note in notes if "resumed" in note]) == 1


def test_mlflow_has_one_run_that_is_finished(story: Story) -> None:
    (run,) = mlflow_runs(story.run_dir, PROJECT, LOSS)
    assert (run.status, run.name) == ("FINISHED", story.spec.run_id)
    assert story.shows(run.curve)
    assert run.params["train.learning_rate"] == str(story.spec.train.learning_rate)
    assert "RUNTIME_GPU_OOM" in run.description


def test_wandb_has_one_offline_folder_with_the_whole_run(story: Story) -> None:
    (run,) = wandb_runs(story.run_dir, LOSS)
    assert (run.run_id, run.project, run.exit_code) == (story.spec.run_id, PROJECT, 0)
    assert story.shows(run.curve)
    assert run.config["train.learning_rate"] == story.spec.train.learning_rate
    assert run.summary["status"] == "completed"


def test_trackio_has_one_run_with_each_step_once(story: Story) -> None:
    names, curve = trackio_runs(PROJECT, LOSS)
    assert names == [story.spec.run_id]
    assert story.shows(curve)


def test_nothing_of_the_trackers_runs_on(story: Story) -> None:
    assert attended(story.run_dir) == []


def test_a_campaign_is_one_run_whose_steps_are_counted_on(oracle: Oracle) -> None:
    spec = tracked(campaign_of(oracle.output(), runs=2), "tensorboard")
    outcome, _ = run_here(spec)
    assert outcome.status == "completed"
    run_dir = oracle.output().run(spec.run_id)
    steps = [step for step, _ in tensorboard_curve(run_dir, LOSS)]
    assert steps == sorted(set(steps))
    assert LINK_STEPS < steps[-1] == 2 * LINK_STEPS
    assert [step for step, _ in tensorboard_curve(run_dir, "campaign/loss_run_1")] == [LINK_STEPS, 2 * LINK_STEPS]
    assert not [
        run for run in oracle.output().runs.iterdir() if run != run_dir.path and RunDir(run).tensorboard.exists()
    ]


def test_a_tracker_that_fails_does_not_fail_the_run(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://at-all")
    spec = tracked(toy_spec(oracle.output()), "mlflow")
    outcome, _ = run_here(spec)
    assert outcome.status == "completed"
    assert "nowhere" in told.load(oracle.output().run(spec.run_id).told("mlflow")).problem


def test_a_tracker_that_fails_is_told_of_once_and_tried_again_later(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://at-all")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run_dir = runs.create(tracked(toy_spec(oracle.output()), "mlflow"))
    now, warnings = [0.0], list[str]()
    trackers = Trackers(run_dir, ["mlflow"], clock=lambda: now[0])
    trackers.tell = warnings.append
    something = Noticed(time=1.0, run_id=run_dir.run_id, level="info", text="it goes on")
    trackers.event(RunCreated(time=1.0, run_id=run_dir.run_id))

    def failed() -> bool:
        trackers.event(something)
        return bool(warnings) and not attended(run_dir)

    eventually(failed, "the tracker failed")
    assert "the run goes on" in warnings[0]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    now[0] = 11.0
    trackers.event(something)
    trackers.close()
    trackers.wait()
    assert len(warnings) == 1
    assert mlflow_runs(run_dir, PROJECT, LOSS)[0].status == "KILLED"


def test_a_tracker_that_hangs_holds_up_nothing(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes every request, and never answers
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{mute.getsockname()[1]}")
        run_dir = runs.create(tracked(toy_spec(oracle.output()), "mlflow"))
        trackers = Trackers(run_dir, ["mlflow"])
        trackers.event(RunCreated(time=1.0, run_id=run_dir.run_id))
        mute.settimeout(120)
        connection, _ = mute.accept()
        with connection:
            trackers.close()
            said: list[str] = []
            assert trackers.wait(0.1, said.append) == ("mlflow",)
            assert attended(run_dir) == []
    assert "mlflow was not told all of the run" in said[-1]
    assert f"backprop track {run_dir.run_id[:8]}" in said[-1]


def test_what_a_tracker_missed_is_told_when_it_is_asked_for(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run that is over; and of one that has no trackers, that it has none."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    spec = tracked(toy_spec(oracle.output()), "mlflow")
    said: list[str] = []
    with monkeypatch.context() as variables:
        variables.setenv("MLFLOW_TRACKING_URI", "nowhere://at-all")
        supervise(runs.create(spec), tell=said.append)
        assert [line for line in said if "mlflow was not told all of the run" in line]
        assert track(oracle, spec).returncode == ExitCode.TRY_LATER
    assert track(oracle, spec).returncode == 0
    (run,) = mlflow_runs(oracle.output().run(spec.run_id), PROJECT, LOSS)
    assert run.status == "FINISHED"
    assert [step for step, _ in run.curve][-1] == STEPS
    other = toy_spec(oracle.output())
    runs.create(other)
    assert "the run has no trackers" in track(oracle, other).stderr


def track(oracle: Oracle, spec: RunSpec) -> subprocess.CompletedProcess[str]:
    command = ["track", spec.run_id, "--output", str(oracle.output().path)]
    return subprocess.run(
        [sys.executable, "-P", "-m", "backpropagate", *command],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_a_login_that_wandb_does_not_have_is_not_asked_for(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the spec says that it may send: it goes on offline."""
    monkeypatch.setenv("NETRC", str(oracle.home / "netrc"))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    spec = msgspec.structs.replace(tracked(toy_spec(oracle.output()), "wandb"), report_offline=False)
    said: list[str] = []
    outcome = supervise(runs.create(spec), tell=said.append)
    assert outcome.status == "completed"
    run_dir = oracle.output().run(spec.run_id)
    (run,) = wandb_runs(run_dir, LOSS)
    assert run.exit_code == 0
    noticed = [event.text for event in journal.read(run_dir.events) if isinstance(event, Noticed)]
    assert [text for text in [*said, *noticed] if "W&B takes no run now: it is kept offline" in text]


@pytest.mark.skipif(sys.platform == "win32", reason="opens a pseudo-terminal")
def test_nobody_at_a_terminal_is_asked_for_a_login(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETRC", str(oracle.home / "netrc"))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    spec = toy_spec(oracle.output())
    command = ["train", "--data", spec.data.source, "--model", "toy", "--backend", "toy", "--steps", "4"]
    command += ["--output", str(oracle.output().path), "--report-to", "wandb"]
    ours, theirs = os.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "backpropagate", *command], stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        shown = _all_of(ours)
        assert process.wait(timeout=120) == 0
    finally:
        os.close(ours)
    assert "wandb: no login is known; the run is kept offline" in shown
    (run_dir,) = oracle.output().runs.iterdir()
    assert [run.exit_code for run in wandb_runs(RunDir(run_dir), LOSS)] == [0]


def _all_of(terminal: int) -> str:
    """What is written to a pseudo-terminal, until nobody has it open any more."""
    shown = b""
    try:
        while piece := os.read(terminal, 1 << 16):
            shown += piece
    except OSError:  # so Linux says that the other end is closed
        pass
    return shown.decode(errors="replace")
