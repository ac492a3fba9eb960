"""Checkpoint folders, one system call failing at a time."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import msgspec
import pytest

from backpropagate_protocol.durable import Disk, NotWhole, verify_dir
from backpropagate_protocol.errors import BackpropagateError, CheckpointError, DiskFullError
from backpropagate_protocol.messages import FaultKind, Phase
from backpropagate_protocol.rundir import Manifest, OutputDir, RunDir, checkpoint_step
from backpropagate_protocol.spec import spec_digest
from backpropagate_runner.checkpoint import check_data, commit, make_room, open_resume, prune
from backpropagate_runner.faults import classify
from tests.protocol.lossy_disk import FailingDisk, no_descriptors
from tests.runner.child import train_job


def _manifest(step: int, order: int = 7, spec: str = "spec") -> Manifest:
    return Manifest(
        run_id="r",
        step=step,
        total_steps=100,
        samples_seen=8 * step,
        order=order,
        micro_batch=4,
        accumulation=2,
        data_digest="data",
        spec_digest=spec,
        backend="toy",
    )


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = OutputDir(tmp_path).run("r")
    run.checkpoints.mkdir(parents=True)
    return run


def _stage(run: RunDir) -> Path:
    staged = run.staging / "checkpoint"
    (staged / "deep").mkdir(parents=True)
    (staged / "state.json").write_text("{}")
    (staged / "deep" / "weights.bin").write_bytes(bytes(1000))
    return staged


def _save(run: RunDir, step: int) -> None:
    commit(_stage(run), run.checkpoint(step), _manifest(step))


def _steps(run: RunDir) -> list[int]:
    return sorted(step for p in run.checkpoints.iterdir() if (step := checkpoint_step(p.name)) is not None)


def test_a_commit_tells_size_and_files(run: RunDir) -> None:
    size, files = commit(_stage(run), run.checkpoint(5), _manifest(5))
    assert size == 1002
    assert sorted(files) == ["deep/weights.bin", "state.json"]
    assert verify_dir(run.checkpoint(5)).files == files


def test_whichever_call_fails_no_half_checkpoint_remains_and_the_older_one_stands(run: RunDir) -> None:
    _save(run, 5)
    failed = 0
    for call in range(1, 100):
        disk = FailingDisk(call, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        try:
            commit(_stage(run), run.checkpoint(10), _manifest(10), disk)
        except OSError:
            failed += 1
            assert [p.name for p in run.checkpoints.iterdir()] == ["step-00000005"]
            assert list(run.staging.iterdir()) == []
            verify_dir(run.checkpoint(5))
        else:
            break
    assert failed >= 6
    assert _steps(run) == [5, 10]


@pytest.mark.parametrize(("keep", "left"), [(3, [15, 20, 25]), (1, [25]), (0, [25]), (10, [5, 10, 15, 20, 25])])
def test_the_newest_are_kept_and_never_none(run: RunDir, keep: int, left: list[int]) -> None:
    for step in (5, 10, 15, 20, 25):
        _save(run, step)
    prune(run, 25, keep)
    assert _steps(run) == left


def test_the_one_just_committed_stays_even_beside_higher_steps(run: RunDir) -> None:
    for step in (5, 90, 95):
        _save(run, step)
    prune(run, 5, 1)
    assert 5 in _steps(run)


def test_what_is_not_named_like_a_checkpoint_is_never_removed(run: RunDir) -> None:
    others = ["step-00000001.partial", "step-00000002.quarantine", "step-3", "notes"]
    for name in others:
        (run.checkpoints / name).mkdir()
    for step in (5, 10):
        _save(run, step)
    prune(run, 10, 1)
    assert sorted(p.name for p in run.checkpoints.iterdir()) == sorted([*others, "step-00000010"])


def test_a_removal_that_fails_leaves_a_whole_checkpoint_or_none(run: RunDir) -> None:
    """Cut short anywhere, no half of one stays under a checkpoint's name."""

    class Stuck(Disk):
        def remove(self, path: Path) -> None:
            (path / "state.json").unlink()
            raise OSError(errno.EIO, "stuck")

    for step in (5, 10):
        _save(run, step)
    prune(run, 10, 1, Stuck())
    assert _steps(run) == [10]
    prune(run, 10, 1, FailingDisk(1, OSError(errno.EIO, "no rename")))
    verify_dir(run.checkpoint(10))


def test_the_same_checkpoint_again_is_already_there(run: RunDir) -> None:
    _save(run, 5)
    assert make_room(run.checkpoint(5), _manifest(5))
    assert not make_room(run.checkpoint(10), _manifest(10))


def test_another_checkpoint_in_the_way_is_moved_aside_whole(run: RunDir) -> None:
    _save(run, 5)
    assert not make_room(run.checkpoint(5), _manifest(5, order=8))
    assert _steps(run) == []
    [aside] = run.checkpoints.iterdir()
    assert verify_dir(aside).step == 5


def test_a_resume_needs_a_whole_checkpoint_of_the_same_spec_and_data(tmp_path: Path) -> None:
    job = train_job(tmp_path)
    run = RunDir(Path(job.run_dir))
    run.checkpoints.mkdir(exist_ok=True)
    assert open_resume(job) is None
    folder = run.checkpoint(5)
    commit(_stage(run), folder, _manifest(5, spec=spec_digest(job.spec)))
    job = msgspec.structs.replace(job, resume_from=str(folder))
    found = open_resume(job)
    assert found is not None
    check_data(found, "data")
    with pytest.raises(BackpropagateError, match="STATE_RUN_MISMATCH"):
        check_data(found, "other data")
    (folder / "state.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"state\.json"):
        open_resume(job)
    with pytest.raises(NotWhole):
        verify_dir(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="the number of open files is not limited so")
def test_a_checkpoint_that_cannot_be_read_now_is_the_disks_fault(tmp_path: Path) -> None:
    """Told as a damaged one, it would be put aside for good."""
    job = train_job(tmp_path)
    folder = RunDir(Path(job.run_dir)).checkpoint(5)
    commit(_stage(RunDir(Path(job.run_dir))), folder, _manifest(5, spec=spec_digest(job.spec)))
    job = msgspec.structs.replace(job, resume_from=str(folder))
    with no_descriptors(), pytest.raises(DiskFullError, match="cannot be read") as told:
        open_resume(job)
    assert classify(told.value, Phase.IMPORT, 0).kind is FaultKind.DISK
    assert open_resume(job) is not None


def test_pruning_is_no_reason_to_fail(run: RunDir) -> None:
    """A good save is followed by it; a training does not end because old folders cannot be listed."""
    run.checkpoints.rmdir()
    prune(run, 5, 3)


def test_a_checkpoint_of_another_spec_is_refused(tmp_path: Path) -> None:
    job = train_job(tmp_path)
    run = RunDir(Path(job.run_dir))
    commit(_stage(run), run.checkpoint(5), _manifest(5, spec="another"))
    with pytest.raises(BackpropagateError, match="STATE_RUN_MISMATCH"):
        open_resume(msgspec.structs.replace(job, resume_from=str(run.checkpoint(5))))
