"""A real child from Hello to its end: how it starts, what it says, and every way in which it is told to stop."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import backpropagate_backends
import backpropagate_protocol
import backpropagate_runner
from backpropagate_protocol.durable import verify_dir
from backpropagate_protocol.jobs import GenerateJob, TrainJob, ValidateJob
from backpropagate_protocol.messages import (
    PROTOCOL_VERSION,
    Answers,
    CheckpointSaved,
    DataReport,
    Done,
    Fault,
    FaultKind,
    Hello,
    Phase,
    PhaseChanged,
    Progress,
    RunJob,
    Save,
    Started,
    Stop,
    Stopped,
    TrainResult,
)
from backpropagate_protocol.rundir import checkpoint_step
from backpropagate_protocol.spec import DataSpec, ModelSpec, PlannedFault, SafetySpec
from tests.runner.child import Child, run_of, runner, train_job, write_rows


def _held(folder: Path) -> TrainJob:
    """A Job that stays, in good health, before step 8 until it is told to stop, and that saves only when asked to."""
    return train_job(folder, faults=(PlannedFault("hold", 8),), safety=SafetySpec(save_steps=100))


def _until_held(child: Child) -> None:
    for message in child.messages():
        if isinstance(message, Progress) and message.step == 7:
            return


def test_hello_comes_first_and_without_a_framework(tmp_path: Path) -> None:
    with Child(tmp_path / "log", warm="none") as child:
        hello = child.wait_for(Hello)
        assert child.said == [hello]
        assert (hello.protocol, hello.pid) == (PROTOCOL_VERSION, child.process.pid)
        assert hello.packages["backpropagate"]


def test_a_job_is_done_and_its_result_is_whole_on_disk(tmp_path: Path) -> None:
    job = train_job(tmp_path)
    with runner(job, tmp_path) as child:
        last = child.finish()
    assert isinstance(last, Done)
    assert isinstance(last.result, TrainResult)
    assert (last.result.step, last.result.samples_seen) == (20, 148)
    assert last.result.adapter == str(run_of(job).adapter)
    assert verify_dir(run_of(job).adapter).order == last.result.order
    assert child.process.returncode == 0
    [started] = child.of(Started)
    assert (started.step, started.micro_batch, started.accumulation) == (0, 4, 2)


def test_the_phases_come_in_order(tmp_path: Path) -> None:
    with runner(train_job(tmp_path, safety=SafetySpec(save_steps=100)), tmp_path) as child:
        child.finish()
    phases = [m.phase for m in child.of(PhaseChanged)]
    seen = [phase for i, phase in enumerate(phases) if i == 0 or phases[i - 1] is not phase]
    P = Phase
    assert seen == [P.VALIDATE, P.IMPORT, P.TOKENIZE, P.LOAD, P.FIRST_STEP, P.TRAIN, P.CHECKPOINT, P.TRAIN, P.FINISH]


def test_the_newest_checkpoints_are_kept_and_each_verifies(tmp_path: Path) -> None:
    job = train_job(tmp_path, steps=30, safety=SafetySpec(save_steps=5, keep_checkpoints=2))
    with runner(job, tmp_path) as child:
        child.finish()
    assert [m.step for m in child.of(CheckpointSaved)] == [5, 10, 15, 20, 25, 30]
    folders = sorted(p.name for p in run_of(job).checkpoints.iterdir())
    assert [checkpoint_step(name) for name in folders] == [25, 30]
    for name in folders:
        assert verify_dir(run_of(job).checkpoints / name).run_id == job.spec.run_id


def test_a_stop_saves_at_the_next_boundary_and_is_answered(tmp_path: Path) -> None:
    job = _held(tmp_path)
    with runner(job, tmp_path) as child:
        _until_held(child)
        child.send(Stop("heat"))
        assert child.finish() == Stopped(8, saved=True)
        assert child.process.returncode == 0
    assert verify_dir(run_of(job).checkpoint(8)).samples_seen == 58


def test_a_stop_without_a_save_leaves_no_checkpoint(tmp_path: Path) -> None:
    job = _held(tmp_path)
    with runner(job, tmp_path) as child:
        _until_held(child)
        child.send(Stop("heat", save=False))
        assert child.finish() == Stopped(8, saved=False)
    assert list(run_of(job).checkpoints.iterdir()) == []


def test_a_save_that_was_asked_for_comes_and_the_training_goes_on(tmp_path: Path) -> None:
    job = train_job(tmp_path, model="toy?step_seconds=0.005", steps=200, safety=SafetySpec(save_steps=10_000))
    with runner(job, tmp_path) as child:
        child.wait_for(Progress)
        child.send(Save())
        saved = child.wait_for(CheckpointSaved)
        assert saved.step < 200
        assert isinstance(child.finish(), Done)


def test_a_stop_before_the_first_step_is_answered_at_once(tmp_path: Path) -> None:
    with runner(train_job(tmp_path, faults=(PlannedFault("hang", 0),)), tmp_path) as child:
        for message in child.messages():
            if isinstance(message, PhaseChanged) and message.phase is Phase.LOAD:
                break
        child.send(Stop("ctrl-c"))
        assert child.finish() == Stopped(0, saved=False)
        assert child.process.returncode == 0


def test_a_runner_without_a_job_can_be_sent_home(tmp_path: Path) -> None:
    with Child(tmp_path / "log") as child:
        child.wait_for(Hello)
        child.send(Stop("no longer needed"))
        assert child.finish() == Stopped(0, saved=False)


def test_a_runner_without_a_job_ends_with_its_pipe(tmp_path: Path) -> None:
    with Child(tmp_path / "log") as child:
        child.wait_for(Hello)
        child.hang_up()
        child.finish()
        assert child.process.returncode == 0


def test_when_the_pipe_ends_the_training_is_saved_and_ends(tmp_path: Path) -> None:
    job = _held(tmp_path)
    with runner(job, tmp_path) as child:
        _until_held(child)
        child.hang_up()
        assert child.finish() == Stopped(8, saved=True)
    assert verify_dir(run_of(job).checkpoint(8)).step == 8


def test_a_hung_runner_whose_pipe_ended_is_ended_by_its_lease(tmp_path: Path) -> None:
    """It cannot save, so after the grace it must go without."""
    safety = SafetySpec(save_steps=100, grace=0.5)
    with runner(train_job(tmp_path, faults=(PlannedFault("hang", 8),), safety=safety), tmp_path) as child:
        child.wait_until(lambda: "planned fault before step 8" in child.log.read_text())
        child.hang_up()
        assert child.finish() is None
        assert child.process.returncode == 1
        assert "Timeout" in child.log.read_text()


def test_a_parent_that_does_not_read_does_not_stall_the_training(tmp_path: Path) -> None:
    """Far more progress than the pipe holds, and nobody reads until the result lies on disk."""
    job = train_job(tmp_path, steps=30_000, safety=SafetySpec())
    with Child(tmp_path / "log", listening=False) as child:
        child.send(RunJob(job))
        child.wait_until(run_of(job).adapter.exists)
        child.listen()
        assert isinstance(child.finish(), Done)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_sigterm_saves_and_stops_like_the_message(tmp_path: Path) -> None:
    job = _held(tmp_path)
    with runner(job, tmp_path) as child:
        _until_held(child)
        os.kill(child.process.pid, signal.SIGTERM)
        assert child.finish() == Stopped(8, saved=True)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_sigterm_without_a_job_ends_it(tmp_path: Path) -> None:
    with Child(tmp_path / "log") as child:
        child.wait_for(Hello)
        os.kill(child.process.pid, signal.SIGTERM)
        assert child.finish() == Stopped(0, saved=False)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP"])
def test_ctrl_c_and_a_closed_terminal_are_the_parents_business(tmp_path: Path, name: str) -> None:
    with runner(_held(tmp_path), tmp_path) as child:
        _until_held(child)
        os.kill(child.process.pid, signal.Signals[name])
        child.send(Stop("now"))
        assert child.finish() == Stopped(8, saved=True)


def test_what_is_no_message_ends_it_with_a_fault(tmp_path: Path) -> None:
    with Child(tmp_path / "log") as child:
        child.wait_for(Hello)
        child.send_bytes(b"GET / HTTP/1.1\r\n\r\n")
        last = child.finish()
        assert isinstance(last, Fault)
        assert last.code == "RUNTIME_PROTOCOL"
        assert child.process.returncode == 1


def test_a_bad_row_is_a_user_fault_before_any_model(tmp_path: Path) -> None:
    job = train_job(tmp_path)
    Path(job.spec.data.source).write_text('{"text": "fine"}\n{"text": \n')
    with runner(job, tmp_path) as child:
        last = child.finish()
    assert isinstance(last, Fault)
    assert (last.kind, last.code) == (FaultKind.USER, "INPUT_DATASET_PARSE_FAILED")
    assert "2" in last.message
    assert child.of(Started) == []


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs a framework to import")
def test_a_bad_row_is_told_while_the_frameworks_are_still_being_imported(tmp_path: Path) -> None:
    job = train_job(tmp_path, backend="cpu")
    Path(job.spec.data.source).write_text('{"text": \n')
    with runner(job, tmp_path, warm="cpu") as child:
        assert isinstance(child.finish(), Fault)
    assert {m.phase for m in child.of(PhaseChanged)} == {Phase.VALIDATE}


def test_a_backend_that_does_not_exist_is_a_user_fault(tmp_path: Path) -> None:
    with runner(train_job(tmp_path, backend="abacus"), tmp_path, warm="abacus") as child:
        last = child.finish()
    assert isinstance(last, Fault)
    assert (last.kind, last.code) == (FaultKind.USER, "CONFIG_INVALID_SETTING")


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need a privilege there")
def test_without_the_training_packages_it_says_so(tmp_path: Path) -> None:
    """An interpreter that has msgspec and nothing else."""
    light = tmp_path / "light"
    light.mkdir()
    for module in (msgspec, backpropagate_protocol, backpropagate_backends, backpropagate_runner):
        assert module.__file__ is not None
        folder = Path(module.__file__).parent
        (light / folder.name).symlink_to(folder)
    with Child(tmp_path / "log", warm="auto", light=light) as child:
        child.do(train_job(tmp_path, backend="auto"))
        last = child.finish()
    assert isinstance(last, Fault), child.log.read_text()
    assert (last.kind, last.code) == (FaultKind.USER, "DEP_RUNNER_MISSING")
    assert "pip install" in last.suggestion


def test_the_warm_backend_may_be_another_one_than_the_jobs(tmp_path: Path) -> None:
    with runner(train_job(tmp_path), tmp_path, warm="abacus") as child:
        assert isinstance(child.finish(), Done)


def test_secrets_in_a_fault_are_redacted(tmp_path: Path) -> None:
    job = train_job(tmp_path)
    data = msgspec.structs.replace(job.spec.data, source=str(tmp_path / "hf_abcdefghijklmnop.jsonl"))
    job = msgspec.structs.replace(job, spec=msgspec.structs.replace(job.spec, data=data))
    with runner(job, tmp_path) as child:
        last = child.finish()
    assert isinstance(last, Fault)
    assert "hf_abc" not in last.message + last.traceback
    assert "hf_abc" not in child.log.read_text()


def test_a_column_name_that_no_encoding_takes_is_a_bad_row_like_any_other(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"\\ud800x": 1}\n')
    with runner(train_job(tmp_path), tmp_path) as child:
        fault = child.finish()
    assert isinstance(fault, Fault)
    assert fault.kind is FaultKind.USER
    assert "\\ud800x" in fault.message


def test_a_report_of_such_a_column_can_be_sent(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "good"}\n{"\\ud800x": 1}\n')
    with runner(ValidateJob(data=DataSpec(source=str(rows))), tmp_path) as child:
        done = child.finish()
    assert isinstance(done, Done)
    assert isinstance(done.result, DataReport)
    assert "\\ud800x" in done.result.errors[0]


def test_a_validate_job_reports_and_trains_nothing(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", 12)
    with runner(ValidateJob(data=DataSpec(source=str(source))), tmp_path, warm="none") as child:
        last = child.finish()
    assert isinstance(last, Done)
    assert isinstance(last.result, DataReport)
    assert (last.result.rows, last.result.bad) == (12, 0)


def test_a_generate_job_answers_each_prompt_with_the_tuned_model(tmp_path: Path) -> None:
    job = train_job(tmp_path)
    with runner(job, tmp_path) as child:
        child.finish()
    model = ModelSpec(name="toy", path="toy")
    answers = []
    for adapter in (None, str(run_of(job).adapter)):
        with runner(GenerateJob(model=model, adapter=adapter, prompts=("a", "b"), backend="toy"), tmp_path) as child:
            last = child.finish()
        assert isinstance(last, Done)
        assert isinstance(last.result, Answers)
        assert len(last.result.texts) == 2
        answers.append(last.result.texts[0])
    assert answers[0] != answers[1]


def test_started_by_hand_it_says_what_to_start_instead() -> None:
    command = [sys.executable, "-P", "-m", "backpropagate_runner"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "backprop" in done.stderr


def test_a_second_attempt_replaces_the_result_of_the_first(tmp_path: Path) -> None:
    """An attempt that died between its result and its Done: the next one replaces the result."""
    job = train_job(tmp_path)
    digests = []
    for attempt in (1, 2):
        with runner(msgspec.structs.replace(job, attempt=attempt), tmp_path) as child:
            last = child.finish()
        assert isinstance(last, Done)
        assert isinstance(last.result, TrainResult)
        digests.append(last.result.digest)
    assert digests[0] == digests[1]
    assert sorted(p.name for p in run_of(job).path.iterdir() if "adapter" in p.name) == ["adapter"]
