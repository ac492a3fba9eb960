"""A run that begins from an adapter begins from the same one in every attempt."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from backpropagate_backends.base import ADAPTER_WEIGHTS
from backpropagate_protocol.jobs import TrainJob
from backpropagate_protocol.messages import DataReady, Done, Fault, FaultKind, TrainResult
from backpropagate_protocol.spec import PlannedFault
from tests.runner.child import again, run_of, runner, train_job


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """Trained by another run."""
    with runner(train_job(tmp_path, run_id="before"), tmp_path) as child:
        last = child.finish()
    assert isinstance(last, Done)
    assert isinstance(last.result, TrainResult)
    return Path(last.result.adapter)


def _from(adapter: Path, folder: Path, *faults: PlannedFault) -> TrainJob:
    job = train_job(folder, run_id="after", faults=faults)
    return msgspec.structs.replace(job, spec=msgspec.structs.replace(job.spec, init_adapter=str(adapter)))


def _died_before_its_first_checkpoint(job: TrainJob, folder: Path) -> DataReady:
    with runner(job, folder) as child:
        assert child.finish() is None
    return child.of(DataReady)[0]


def test_another_adapter_in_its_place_is_noticed_at_the_next_attempt(tmp_path: Path, adapter: Path) -> None:
    job = _from(adapter, tmp_path, PlannedFault("sigkill", 3))
    ready = _died_before_its_first_checkpoint(job, tmp_path)
    weights = bytearray((adapter / ADAPTER_WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (adapter / ADAPTER_WEIGHTS).write_bytes(weights)
    with runner(again(job, ready, step=0), tmp_path) as child:
        fault = child.finish()
    assert isinstance(fault, Fault)
    assert (fault.kind, fault.code) == (FaultKind.USER, "STATE_RUN_MISMATCH")
    assert "is not the one that this run began from" in fault.message


def test_the_same_adapter_made_again_will_do(tmp_path: Path, adapter: Path) -> None:
    job = _from(adapter, tmp_path, PlannedFault("sigkill", 3))
    ready = _died_before_its_first_checkpoint(job, tmp_path)
    shutil.copytree(adapter, tmp_path / "copy")
    shutil.rmtree(adapter)
    shutil.copytree(tmp_path / "copy", adapter)
    with runner(again(job, ready, step=0), tmp_path) as child:
        assert isinstance(child.finish(), Done)


def test_an_adapter_that_is_gone_is_refused_before_anything_is_read(tmp_path: Path, adapter: Path) -> None:
    job = _from(tmp_path / "nowhere", tmp_path)
    with runner(job, tmp_path) as child:
        fault = child.finish()
    assert isinstance(fault, Fault)
    assert (fault.kind, fault.code) == (FaultKind.USER, "INPUT_ADAPTER_MISMATCH")
    assert not child.of(DataReady)


def test_a_run_that_begins_from_nothing_remembers_nothing(tmp_path: Path, adapter: Path) -> None:
    assert not run_of(train_job(tmp_path, run_id="before")).begun_from.exists()
