"""Memory that runs out within a step, on a real child: what is done again in it, and what is left to its successor."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from backpropagate_protocol.jobs import TrainJob
from backpropagate_protocol.messages import (
    CheckpointSaved,
    Done,
    Fault,
    FaultKind,
    Halved,
    Phase,
    Progress,
    Rehearsed,
    TrainResult,
)
from backpropagate_protocol.spec import PlannedFault
from backpropagate_runner.drill import OTHERS
from backpropagate_runner.shrinking import SOON
from tests.runner.child import Child, runner, train_job


def _job(
    folder: Path, *faults: PlannedFault, smaller: tuple[int, ...] = (2, 1), rehearse: int | None = None
) -> TrainJob:
    """40 steps of 8 samples, 4 at once."""
    return msgspec.structs.replace(train_job(folder, steps=40, faults=faults), smaller=smaller, rehearse=rehearse)


def _told(child: Child) -> list[tuple[int, int, int]]:
    return [(said.step, said.micro_batch, said.accumulation) for said in child.of(Halved)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    folder = tmp_path_factory.mktemp("undisturbed")
    with runner(_job(folder), folder) as child:
        done = child.finish()
    assert isinstance(done, Done)
    assert isinstance(done.result, TrainResult)
    return done.result


@pytest.mark.parametrize("place", ["forward", "backward"])
def test_a_shortage_within_a_step_loses_no_step_and_no_sample(
    tmp_path: Path, undisturbed: TrainResult, place: str
) -> None:
    first, later = PlannedFault(f"oom_in_{place}", 8), PlannedFault(f"oom_in_{place}", 8 + SOON)
    with runner(_job(tmp_path, first, later), tmp_path) as child:
        done = child.finish()
    assert isinstance(done, Done)
    assert isinstance(done.result, TrainResult)
    assert _told(child) == [(8, 2, 4), (8 + SOON, 1, 8)]
    assert (child.of(Halved)[0].needed, child.of(Halved)[0].free) == (2048, 1536)
    assert [said.step for said in child.of(Progress)] == sorted({said.step for said in child.of(Progress)})
    assert (done.result.step, done.result.order) == (40, undisturbed.order)


@pytest.mark.parametrize(
    ("faults", "smaller", "told"),
    [
        ((PlannedFault("oom_in_forward", 8), PlannedFault("oom_in_forward", 7 + SOON)), (2, 1), [(8, 2, 4)]),
        ((PlannedFault("oom_in_forward", 8), PlannedFault("oom_in_forward", 8)), (2, 1), [(8, 2, 4)]),
        ((PlannedFault("oom_in_forward", 8),), (), []),
        ((PlannedFault("oom_in_optimizer", 8),), (2, 1), []),
    ],
    ids=["soon again", "at once again", "not allowed", "in the optimizer"],
)
def test_what_a_child_may_not_mend_is_a_fault_and_saves_nothing(
    tmp_path: Path, faults: tuple[PlannedFault, ...], smaller: tuple[int, ...], told: list[tuple[int, int, int]]
) -> None:
    with runner(_job(tmp_path, *faults, smaller=smaller), tmp_path) as child:
        last = child.finish()
    assert isinstance(last, Fault)
    assert (last.kind, last.phase) == (FaultKind.OOM, Phase.TRAIN)
    assert last.step == faults[-1].step - 1
    assert _told(child) == told
    assert {said.step % 5 for said in child.of(CheckpointSaved)} == {0}


def test_memory_that_others_took_is_not_met_with_a_smaller_batch(tmp_path: Path) -> None:
    with runner(_job(tmp_path, PlannedFault("oom_by_others", 8)), tmp_path) as child:
        last = child.finish()
    assert isinstance(last, Fault)
    assert (last.kind, last.others, _told(child)) == (FaultKind.OOM, OTHERS, [])


def test_an_allocator_that_thrashes_two_steps_in_a_row_ends_the_child_with_the_step_saved(tmp_path: Path) -> None:
    faults = (PlannedFault("thrash", 3), PlannedFault("thrash", 7), PlannedFault("thrash", 8))
    with runner(_job(tmp_path, *faults), tmp_path) as child:
        last = child.finish()
    assert isinstance(last, Fault)
    assert (last.kind, last.step) == (FaultKind.OOM, 8)
    assert [said.step for said in child.of(CheckpointSaved)] == [5, 8]


def test_a_rehearsal_finds_the_batch_that_fits_before_the_first_step(tmp_path: Path, undisturbed: TrainResult) -> None:
    faults = (PlannedFault("oom_in_backward", 0), PlannedFault("oom_in_forward", 0), PlannedFault("oom_in_forward", 3))
    with runner(_job(tmp_path, *faults, smaller=(2, 1), rehearse=0), tmp_path) as child:
        last = child.finish()
    assert isinstance(last, Fault)  # of step 3: there is no smaller batch
    assert _told(child) == [(0, 2, 4), (0, 1, 8)]
    (rehearsed,) = child.of(Rehearsed)
    assert (rehearsed.micro_batch, rehearsed.tokens) == (1, 26)
    assert child.said.index(rehearsed) < child.said.index(child.of(Progress)[0])


def test_a_rehearsal_changes_nothing_and_what_is_known_to_fit_is_not_rehearsed(
    tmp_path: Path, undisturbed: TrainResult
) -> None:
    with runner(_job(tmp_path, rehearse=25), tmp_path) as child:
        done = child.finish()
    assert isinstance(done, Done)
    assert isinstance(done.result, TrainResult)
    assert done.result.digest == undisturbed.digest
    assert len(child.of(Rehearsed)) == 1
    (tmp_path / "known").mkdir()
    with runner(_job(tmp_path / "known", rehearse=26), tmp_path / "known") as child:
        assert isinstance(child.finish(), Done)
    assert child.of(Rehearsed) == []
