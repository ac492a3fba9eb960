"""A checkpoint that would silently restart something, or that belongs to another run, is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from backpropagate_backends.cpu import CpuBackend
from backpropagate_protocol.errors import CheckpointError, InvalidSettingError, UserInputError
from backpropagate_protocol.prepared import Prepared
from tests.backends.torch_runs import FOREIGN_WARNINGS, resumed, run
from tests.backends.torch_session import commit_again, make_data, make_job

pytestmark = [pytest.mark.slow, FOREIGN_WARNINGS]


@pytest.fixture
def checkpoint(cpu: CpuBackend, tiny: Path, rows: Prepared, tmp_path: Path) -> Path:
    """A good checkpoint of step 3, for the test to damage."""
    return run(cpu, make_job(tiny, steps=4), rows, tmp_path / "first", save_at=[3]).session.checkpoint(3)


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "adapter_model.safetensors"]
)
def test_a_checkpoint_without_a_part_of_its_state_is_refused(
    cpu: CpuBackend, tiny: Path, rows: Prepared, checkpoint: Path, tmp_path: Path, name: str
) -> None:
    (checkpoint / name).unlink()
    commit_again(checkpoint)
    with pytest.raises(CheckpointError, match=name):
        run(cpu, resumed(make_job(tiny, steps=4), checkpoint), rows, tmp_path / "second")


def test_other_data_are_refused(cpu: CpuBackend, tiny: Path, checkpoint: Path, tmp_path: Path) -> None:
    others = make_data(tmp_path / "others", rows=31)
    with pytest.raises(UserInputError, match="other data") as caught:
        run(cpu, resumed(make_job(tiny, steps=4), checkpoint), others, tmp_path / "second")
    assert caught.value.code == "STATE_RUN_MISMATCH"


@pytest.mark.parametrize("change", [{"seed": 8}, {"steps": 5}, {"optim": "sgd"}, {"dropout": 0.1}])
def test_other_settings_are_refused(
    cpu: CpuBackend, tiny: Path, rows: Prepared, checkpoint: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    wishes: dict[str, object] = {"steps": 4} | change
    job = make_job(tiny, **wishes)  # type: ignore[arg-type]  # one wish at a time, each of its own type
    with pytest.raises(UserInputError, match="other settings") as caught:
        run(cpu, resumed(job, checkpoint), rows, tmp_path / "second")
    assert caught.value.code == "STATE_RUN_MISMATCH"


def test_another_backend_is_refused(
    cpu: CpuBackend, tiny: Path, rows: Prepared, checkpoint: Path, tmp_path: Path
) -> None:
    commit_again(checkpoint, backend="cuda")
    with pytest.raises(UserInputError, match="was trained on cuda") as caught:
        run(cpu, resumed(make_job(tiny, steps=4), checkpoint), rows, tmp_path / "second")
    assert caught.value.code == "STATE_RUN_MISMATCH"


def test_a_position_that_cannot_be_is_refused(
    cpu: CpuBackend, tiny: Path, rows: Prepared, checkpoint: Path, tmp_path: Path
) -> None:
    commit_again(checkpoint, samples_seen=11)
    with pytest.raises(CheckpointError, match="11 samples; after step 3 it must be 12"):
        run(cpu, resumed(make_job(tiny, steps=4), checkpoint), rows, tmp_path / "second")


def test_a_state_of_another_step_is_refused(
    cpu: CpuBackend, tiny: Path, rows: Prepared, checkpoint: Path, tmp_path: Path
) -> None:
    state = checkpoint / "trainer_state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"global_step": 2}))
    commit_again(checkpoint)
    with pytest.raises(CheckpointError, match="says step 3"):
        run(cpu, resumed(make_job(tiny, steps=4), checkpoint), rows, tmp_path / "second")


def test_halving_without_more_accumulation_is_refused(
    cpu: CpuBackend, tiny: Path, rows: Prepared, checkpoint: Path, tmp_path: Path
) -> None:
    naive = msgspec.structs.replace(resumed(make_job(tiny, steps=4), checkpoint), micro_batch=2)
    with pytest.raises(InvalidSettingError, match="micro-batch 2 x accumulation 1"):
        run(cpu, naive, rows, tmp_path / "second")
