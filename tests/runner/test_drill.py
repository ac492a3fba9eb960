"""Every planned fault, on a real child: what it says and how it ends."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from backpropagate_protocol.durable import NotWhole, verify_dir
from backpropagate_protocol.framing import ProtocolError
from backpropagate_protocol.messages import (
    CheckpointFailed,
    CheckpointSaved,
    Done,
    Evaluated,
    Fault,
    FaultKind,
    Phase,
    Progress,
    Stop,
    Stopped,
)
from backpropagate_protocol.rundir import checkpoint_step
from backpropagate_protocol.spec import PlannedFault
from backpropagate_runner.drill import FLOOD, KINDS
from tests.runner.child import run_of, runner, train_job
from tests.runner.overfitting import evaluated_job

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

_REPORTED = {
    "oom": (FaultKind.OOM, "RUNTIME_GPU_OOM"),
    "cuda_fault": (FaultKind.CUDA, "RUNTIME_GPU_ERROR"),
    "device_lost": (FaultKind.GPU_LOST, "RUNTIME_GPU_LOST"),
    "host_oom": (FaultKind.HOST_OOM, "RUNTIME_HOST_OOM"),
    "nan": (FaultKind.DIVERGED, "RUNTIME_LOSS_DIVERGED"),
    "error": (FaultKind.INTERNAL, "RUNTIME_TRAINING_FAILED"),
}
_DEADLY = {"segfault": "SIGSEGV", "abort": "SIGABRT", "sigkill": "SIGKILL"}
_IN_SAVE = {"sigkill_in_save", "sigkill_before_manifest", "sigkill_beside_save"}
_IN_EVALUATION = {"sigkill_in_evaluation", "oom_in_evaluation", "hang_in_evaluation", "hold_in_evaluation"}
_WITHIN = {
    "oom_in_forward",
    "oom_in_backward",
    "oom_in_optimizer",
    "oom_by_others",
    "thrash",
}  # tests/runner/test_shrinking.py
_OTHERS = {
    "sigterm_self",
    "sigstop",
    "hang",
    "hang_gil",
    "hold",
    "exit0",
    "garbage",
    "flood",
    "print_noise",
    "disk_full",
    "disk_error",
    "torn_save",
    "bitflip_save",
    "hang_teardown",
    "eat_memory",  # tests/system/test_kernel_oom.py
}


def test_every_kind_is_tried_in_this_file() -> None:
    assert set(_REPORTED) | set(_DEADLY) | _IN_SAVE | _IN_EVALUATION | _WITHIN | _OTHERS == KINDS


@pytest.mark.parametrize("kind", _REPORTED)
def test_a_fault_is_told_with_its_step_and_phase(tmp_path: Path, kind: str) -> None:
    with runner(train_job(tmp_path, faults=(PlannedFault(kind, 8),)), tmp_path) as child:
        last = child.finish()
        assert child.process.returncode == 1
    assert isinstance(last, Fault)
    assert (last.kind, last.code) == _REPORTED[kind]
    assert (last.step, last.phase) == (8 if kind == "nan" else 7, Phase.TRAIN)
    assert [m.step for m in child.of(CheckpointSaved)] == [5]


def test_an_oom_tells_needed_and_free_memory(tmp_path: Path) -> None:
    with runner(train_job(tmp_path, faults=(PlannedFault("oom", 1),)), tmp_path) as child:
        last = child.finish()
    assert isinstance(last, Fault)
    assert (last.needed, last.free, last.phase) == (2048, 1536, Phase.FIRST_STEP)


@posix
@pytest.mark.parametrize("kind", _DEADLY)
def test_a_death_has_no_last_word_but_its_signal(tmp_path: Path, kind: str) -> None:
    with runner(train_job(tmp_path, faults=(PlannedFault(kind, 8),)), tmp_path) as child:
        assert child.finish() is None
        assert child.process.returncode == -signal.Signals[_DEADLY[kind]]
        if kind != "sigkill":
            assert "before_step" in child.log.read_text()


def test_an_exit_with_status_0_has_no_last_word_either(tmp_path: Path) -> None:
    with runner(train_job(tmp_path, faults=(PlannedFault("exit0", 8),)), tmp_path) as child:
        assert child.finish() is None
        assert child.process.returncode == 0


@pytest.mark.parametrize("kind", sorted(_IN_SAVE))
def test_a_death_during_a_save_leaves_the_older_checkpoint_and_nothing_that_looks_like_one(
    tmp_path: Path, kind: str
) -> None:
    job = train_job(tmp_path, faults=(PlannedFault(kind, 10),))
    with runner(job, tmp_path) as child:
        assert child.finish() is None
    named = [p for p in run_of(job).checkpoints.iterdir() if checkpoint_step(p.name) is not None]
    assert [p.name for p in named] == ["step-00000005"]
    assert verify_dir(named[0]).step == 5
    assert [m.step for m in child.of(CheckpointSaved)] == [5]


@pytest.mark.parametrize("kind", ["disk_full", "disk_error"])
def test_a_disk_that_fails_once_costs_one_checkpoint_and_no_training(tmp_path: Path, kind: str) -> None:
    job = train_job(tmp_path, faults=(PlannedFault(kind, 10), PlannedFault(kind, 15)))
    with runner(job, tmp_path) as child:
        assert isinstance(child.finish(), Done)
    assert [(m.step, m.failures, m.code) for m in child.of(CheckpointFailed)] == [
        (10, 1, "RUNTIME_DISK_FULL"),
        (15, 2, "RUNTIME_DISK_FULL"),
    ]
    assert [m.step for m in child.of(CheckpointSaved)] == [5, 20]
    assert sorted(p.name for p in run_of(job).checkpoints.iterdir()) == ["step-00000005", "step-00000020"]
    assert list((run_of(job).staging / "attempt-1").iterdir()) == []


@pytest.mark.parametrize("kind", ["torn_save", "bitflip_save"])
def test_a_checkpoint_damaged_after_its_commit_does_not_verify(tmp_path: Path, kind: str) -> None:
    job = train_job(tmp_path, faults=(PlannedFault(kind, 10),))
    with runner(job, tmp_path) as child:
        assert isinstance(child.finish(), Done)
    verify_dir(run_of(job).checkpoint(5))
    with pytest.raises(NotWhole, match=r"state\.json"):
        verify_dir(run_of(job).checkpoint(10))


@pytest.mark.parametrize("kind", sorted(_IN_EVALUATION))
def test_a_fault_in_an_evaluation_comes_after_the_step_and_before_its_score(tmp_path: Path, kind: str) -> None:
    job = evaluated_job(tmp_path, faults=(PlannedFault(kind, 6),))
    with runner(job, tmp_path) as child:
        child.wait_until(lambda: f"planned fault in the evaluation of step 6: {kind}" in child.log.read_text())
        if kind == "hold_in_evaluation":
            child.send(Stop("test"))
        if kind == "hang_in_evaluation":
            child.wait_for(Evaluated)
            assert child.process.poll() is None
            return
        last = child.finish()
    assert last is None if kind == "sigkill_in_evaluation" else isinstance(last, Fault | Stopped)
    assert [m.step for m in child.of(Progress)][-1] == 6
    assert [m.step for m in child.of(Evaluated)] == [3]


def test_garbage_is_garbage_to_the_parent(tmp_path: Path) -> None:
    job = train_job(tmp_path, faults=(PlannedFault("garbage", 3),))
    with runner(job, tmp_path) as child, pytest.raises(ProtocolError):
        child.finish()


def test_a_flood_of_frames_comes_through_whole(tmp_path: Path) -> None:
    with runner(train_job(tmp_path, faults=(PlannedFault("flood", 3),)), tmp_path) as child:
        assert isinstance(child.finish(), Done)
    assert len([m for m in child.of(Progress) if m.step == 0]) == FLOOD


def test_no_print_gets_into_the_protocol(tmp_path: Path) -> None:
    with runner(train_job(tmp_path, faults=(PlannedFault("print_noise", 3),)), tmp_path) as child:
        assert isinstance(child.finish(), Done)
    assert child.log.read_text().count("noise on") == 3000


def test_a_runner_that_hangs_after_done_has_said_it(tmp_path: Path) -> None:
    with runner(train_job(tmp_path, faults=(PlannedFault("hang_teardown", 1),)), tmp_path) as child:
        child.wait_for(Done)
        assert child.process.poll() is None


@posix
def test_a_sigterm_from_elsewhere_saves_and_stops(tmp_path: Path) -> None:
    with runner(train_job(tmp_path, faults=(PlannedFault("sigterm_self", 8),)), tmp_path) as child:
        assert child.finish() == Stopped(8, saved=True)


@posix
@pytest.mark.parametrize("kind", ["hang", "hang_gil"])
def test_a_hung_child_dumps_its_stacks_when_it_is_aborted(tmp_path: Path, kind: str) -> None:
    job = train_job(tmp_path, faults=(PlannedFault(kind, 6),))
    with runner(job, tmp_path) as child:
        child.wait_until(lambda: f"planned fault before step 6: {kind}" in child.log.read_text())
        os.kill(child.process.pid, signal.SIGABRT)
        child.finish()
        assert child.process.returncode == -signal.SIGABRT
        assert "drill.py" in child.log.read_text()


def test_a_stopped_child_is_only_stopped(tmp_path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("POSIX signals")
    with runner(train_job(tmp_path, faults=(PlannedFault("sigstop", 6),)), tmp_path) as child:
        _pid, status = os.waitpid(child.process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        os.kill(child.process.pid, signal.SIGCONT)
        assert isinstance(child.finish(), Done)


def test_a_fault_happens_in_its_attempt_only_and_attempt_0_means_all(tmp_path: Path) -> None:
    faults = (PlannedFault("error", 3, attempt=2), PlannedFault("error", 4, attempt=0))
    for attempt, step in ((1, 3), (2, 2), (3, 3)):
        with runner(train_job(tmp_path, attempt=attempt, faults=faults), tmp_path) as child:
            last = child.finish()
        assert isinstance(last, Fault)
        assert last.step == step


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with runner(train_job(tmp_path, faults=(PlannedFault("earthquake", 3),)), tmp_path) as child:
        last = child.finish()
    assert isinstance(last, Fault)
    assert "earthquake" in last.message
