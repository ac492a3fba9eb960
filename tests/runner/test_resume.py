"""Attempt after attempt on real children: the same samples, the same weights, and nothing else accepted."""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path

import msgspec
import pytest

from backpropagate_protocol.durable import seal, verify_dir
from backpropagate_protocol.jobs import PreparedRef, TrainJob
from backpropagate_protocol.messages import (
    CheckpointSaved,
    DataReady,
    Done,
    Fault,
    FaultKind,
    Notice,
    Started,
    TrainResult,
)
from backpropagate_protocol.rundir import MANIFEST, Manifest
from backpropagate_protocol.spec import PlannedFault
from tests.runner.child import again, run_of, runner, train_job


def _attempt(job: TrainJob, folder: Path) -> tuple[DataReady | None, TrainResult | Fault | None]:
    with runner(job, folder) as child:
        last = child.finish()
    ready = child.of(DataReady)
    result = last.result if isinstance(last, Done) else last
    assert result is None or isinstance(result, (TrainResult, Fault))
    return (ready[0] if ready else None), result


def _undisturbed(folder: Path) -> TrainResult:
    _, result = _attempt(train_job(folder, run_id="undisturbed"), folder)
    assert isinstance(result, TrainResult)
    return result


# 50 rows of 8 a step: step 7 and step 14 end an epoch, with 2 samples each. Checkpoints at 5, 10, 15.
@pytest.mark.parametrize(("died_at", "resumed_from"), [(1, 0), (4, 0), (7, 5), (13, 10), (15, 10), (20, 15)])
def test_a_resume_at_the_same_batch_is_bit_identical(tmp_path: Path, died_at: int, resumed_from: int) -> None:
    job = train_job(tmp_path, faults=(PlannedFault("sigkill", died_at),))
    ready, result = _attempt(job, tmp_path)
    assert result is None
    assert ready is not None
    _, result = _attempt(again(job, ready, step=resumed_from), tmp_path)
    assert isinstance(result, TrainResult)
    expected = _undisturbed(tmp_path)
    assert (result.order, result.samples_seen, result.digest) == (expected.order, 148, expected.digest)


def test_a_halved_batch_sees_the_same_samples_in_every_step(tmp_path: Path) -> None:
    job = train_job(tmp_path, faults=(PlannedFault("oom", 13),))
    ready, _ = _attempt(job, tmp_path)
    assert ready is not None
    with runner(again(job, ready, step=10, micro_batch=2), tmp_path) as child:
        last = child.finish()
    assert isinstance(last, Done)
    assert isinstance(last.result, TrainResult)
    [started] = child.of(Started)
    assert (started.step, started.samples_seen, started.micro_batch, started.accumulation) == (10, 74, 2, 4)
    with runner(train_job(tmp_path, run_id="undisturbed"), tmp_path) as undisturbed:
        expected = undisturbed.finish()
    assert isinstance(expected, Done)
    assert isinstance(expected.result, TrainResult)
    orders = {m.step: m.order for m in undisturbed.of(CheckpointSaved)}
    assert {m.step: m.order for m in child.of(CheckpointSaved)} == {15: orders[15], 20: orders[20]}
    assert last.result.order == expected.result.order
    assert last.result.final_loss == pytest.approx(expected.result.final_loss, rel=1e-9)


def test_a_later_attempt_neither_validates_nor_tokenises(tmp_path: Path) -> None:
    """The rows may even be gone by then."""
    job = train_job(tmp_path, faults=(PlannedFault("sigkill", 13),))
    ready, _ = _attempt(job, tmp_path)
    assert ready is not None
    Path(job.spec.data.source).unlink()
    again_ready, result = _attempt(again(job, ready, step=10), tmp_path)
    assert again_ready is None
    assert isinstance(result, TrainResult)


def test_prepared_data_that_are_gone_are_made_again_from_the_same_rows(tmp_path: Path) -> None:
    job = train_job(tmp_path, faults=(PlannedFault("sigkill", 13),))
    ready, _ = _attempt(job, tmp_path)
    assert ready is not None
    shutil.rmtree(ready.path)
    with runner(again(job, ready, step=10), tmp_path) as child:
        assert isinstance(child.finish(), Done)
    [notice] = child.of(Notice)
    assert "made again" in notice.text


def test_other_packages_than_the_checkpoints_are_named_once_and_the_run_goes_on_to_the_same_end(tmp_path: Path) -> None:
    job = train_job(tmp_path, faults=(PlannedFault("sigkill", 13),))
    ready, _ = _attempt(job, tmp_path)
    assert ready is not None
    stamp = run_of(job).checkpoint(10) / MANIFEST
    manifest = msgspec.json.decode(stamp.read_bytes(), type=Manifest)
    assert manifest.packages["backpropagate"] == version("backpropagate")
    older = msgspec.structs.replace(manifest, packages={**manifest.packages, "backpropagate": "0.0.9"})
    stamp.write_bytes(seal(msgspec.json.encode(older)))
    with runner(again(job, ready, step=10), tmp_path) as child:
        assert isinstance(child.finish(), Done)
    [notice] = child.of(Notice)
    assert notice.level == "warning"
    assert f"step 10 packages have changed: backpropagate 0.0.9 → {version('backpropagate')}. " in notice.text
    after = msgspec.json.decode((run_of(job).checkpoint(15) / MANIFEST).read_bytes(), type=Manifest)
    assert after.packages == manifest.packages  # who goes on from there is told nothing


def test_other_rows_are_refused(tmp_path: Path) -> None:
    job = train_job(tmp_path, faults=(PlannedFault("sigkill", 13),))
    ready, _ = _attempt(job, tmp_path)
    assert ready is not None
    shutil.rmtree(ready.path)
    with Path(job.spec.data.source).open("a") as rows:
        rows.write('{"text": "one more"}\n')
    _, fault = _attempt(again(job, ready, step=10), tmp_path)
    assert isinstance(fault, Fault)
    assert (fault.kind, fault.code) == (FaultKind.USER, "STATE_RUN_MISMATCH")


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    job = train_job(tmp_path, faults=(PlannedFault("sigkill", 13),))
    ready, _ = _attempt(job, tmp_path)
    assert ready is not None
    train = msgspec.structs.replace(job.spec.train, learning_rate=1e-3)
    other = msgspec.structs.replace(job, spec=msgspec.structs.replace(job.spec, train=train))
    _, fault = _attempt(again(other, ready, step=10), tmp_path)
    assert isinstance(fault, Fault)
    assert fault.code == "STATE_RUN_MISMATCH"


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    job = train_job(tmp_path, faults=(PlannedFault("sigkill", 13),))
    ready, _ = _attempt(job, tmp_path)
    other_folder = tmp_path / "other"
    other_folder.mkdir()
    other_ready, _ = _attempt(train_job(other_folder, rows=49), other_folder)
    assert ready is not None
    assert other_ready is not None
    mixed = msgspec.structs.replace(
        again(job, ready, step=10), prepared=PreparedRef(other_ready.path, other_ready.digest)
    )
    _, fault = _attempt(mixed, tmp_path)
    assert isinstance(fault, Fault)
    assert fault.code == "STATE_RUN_MISMATCH"


def test_a_damaged_checkpoint_is_a_fault_of_its_own_kind(tmp_path: Path) -> None:
    job = train_job(tmp_path, faults=(PlannedFault("torn_save", 10), PlannedFault("sigkill", 13)))
    ready, _ = _attempt(job, tmp_path)
    assert ready is not None
    _, fault = _attempt(again(job, ready, step=10), tmp_path)
    assert isinstance(fault, Fault)
    assert (fault.kind, fault.code) == (FaultKind.CHECKPOINT, "STATE_CHECKPOINT_INVALID")
    _, result = _attempt(again(job, ready, step=5), tmp_path)
    assert isinstance(result, TrainResult)


def test_a_damaged_checkpoint_in_the_way_is_moved_aside_and_made_again(tmp_path: Path) -> None:
    job = train_job(tmp_path, faults=(PlannedFault("torn_save", 10), PlannedFault("sigkill", 13)))
    ready, _ = _attempt(job, tmp_path)
    assert ready is not None
    with runner(again(job, ready, step=5), tmp_path) as child:
        assert isinstance(child.finish(), Done)
    assert [m.step for m in child.of(CheckpointSaved)] == [10, 15, 20]
    assert [p for p in run_of(job).checkpoints.iterdir() if "quarantine" in p.name]


def test_a_finished_checkpoint_needs_no_further_step(tmp_path: Path) -> None:
    """The child died after its result had its name, and before it said so."""
    job = train_job(tmp_path)
    ready, first = _attempt(job, tmp_path)
    assert ready is not None
    (run_of(job).adapter / "stale").touch()
    _, second = _attempt(again(job, ready, step=20), tmp_path)
    assert isinstance(first, TrainResult)
    assert isinstance(second, TrainResult)
    assert (second.digest, second.order) == (first.digest, first.order)
    assert verify_dir(run_of(job).adapter).step == 20
    assert {"stale"}.isdisjoint(path.name for path in run_of(job).adapter.iterdir())
    assert not [path for path in run_of(job).path.iterdir() if "adapter" in path.name and path != run_of(job).adapter]


def test_a_micro_batch_that_changes_the_effective_batch_is_refused(tmp_path: Path) -> None:
    job = msgspec.structs.replace(train_job(tmp_path), micro_batch=3)
    _, fault = _attempt(job, tmp_path)
    assert isinstance(fault, Fault)
    assert "not 8" in fault.message
