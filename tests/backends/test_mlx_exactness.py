"""Resumed, halved, killed: on real mlx-lm runs, the same samples and the same weights as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from backpropagate_backends.cpu import CpuBackend
from backpropagate_protocol.jobs import TrainJob
from backpropagate_protocol.messages import TrainResult
from backpropagate_protocol.prepared import Prepared
from tests.backends.torch_runs import FOREIGN_WARNINGS, halved, resumed
from tests.backends.torch_runs import run as torch_run
from tests.backends.torch_session import KeepingSession, Killed, make_job

pytest.importorskip("mlx_lm")
from backpropagate_backends.mlx_backend import MlxBackend
from tests.backends.mlx_runs import mlx_job, run, weights

pytestmark = [pytest.mark.slow, FOREIGN_WARNINGS]

PLACES = (5, 8)  # the middle of an epoch and its end: 30 rows make 8 steps of 4
Whole = tuple[KeepingSession, TrainResult]


@pytest.fixture(scope="module")
def whole(cpu: CpuBackend, tiny: Path, rows: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """10 steps of 4 samples, with checkpoints and held-out scores on the way."""
    session, result = run(mlx_job(tiny, steps=10), rows, tmp_path_factory.mktemp("whole"), save_at=(*PLACES, 10))
    assert result is not None
    return session, result


def _losses(session: KeepingSession) -> dict[int, float | None]:
    return {progress.step: progress.loss for progress in session.progress}


def _distance(one: TrainResult | None, other: TrainResult | None) -> float:
    left, right = weights(one), weights(other)
    assert left.keys() == right.keys()
    return max(float(np.abs(left[name] - right[name]).max()) for name in left)


def test_the_loss_falls(whole: Whole) -> None:
    losses = [progress.loss or 0.0 for progress in whole[0].progress]
    assert sum(losses[-4:]) < sum(losses[:4])


@pytest.mark.parametrize("place", PLACES)
def test_a_resume_at_the_same_batch_is_bit_identical(
    tiny: Path, rows: Prepared, whole: Whole, tmp_path: Path, place: int
) -> None:
    session, result = run(resumed(mlx_job(tiny, steps=10), whole[0].checkpoint(place)), rows, tmp_path)
    assert result is not None
    assert result.digest == whole[1].digest
    assert _losses(session) == {step: loss for step, loss in _losses(whole[0]).items() if step > place}


@pytest.mark.parametrize("times", [1, 2])
def test_a_halved_batch_sees_the_same_samples_and_comes_to_the_same_weights(
    tiny: Path, rows: Prepared, whole: Whole, tmp_path: Path, times: int
) -> None:
    job = halved(resumed(mlx_job(tiny, steps=10), whole[0].checkpoint(5)), times)
    session, result = run(job, rows, tmp_path)
    assert result is not None
    assert result.order == whole[1].order
    assert [progress.order for progress in session.progress] == [p.order for p in whole[0].progress[5:]]
    assert _distance(result, whole[1]) < 1e-6


def test_a_run_that_is_killed_goes_on_from_its_checkpoint_as_if_nothing_had_been(
    tiny: Path, rows: Prepared, whole: Whole, tmp_path: Path
) -> None:
    """Scored on held-out rows on the way, which changes nothing either; and the checkpoint of its last step suffices."""
    job = mlx_job(tiny, steps=10)
    session = KeepingSession(job, tmp_path, rows, save_at=(5, 10), kill_before=8)
    with pytest.raises(Killed):
        MlxBackend().train(session, rows)
    checkpoint = session.checkpoint(5)
    later, result = run(resumed(job, checkpoint), rows, tmp_path, held_out=rows, score_at=(6, 9), save_at=(10,))
    assert result is not None
    assert result.digest == whole[1].digest
    assert set(later.scores) == {6, 9}
    assert later.scores[9].loss < later.scores[6].loss
    _, again = run(resumed(job, later.checkpoint(10)), rows, tmp_path)
    assert again is not None
    assert (again.digest, again.final_loss) == (result.digest, result.final_loss)


def test_with_dropout_a_resume_is_bit_identical_and_no_layer_is_computed_again(
    tiny: Path, rows: Prepared, tmp_path: Path
) -> None:
    """MLX would draw other masks the second time, and the gradients would be wrong: not one bit may change."""
    job = mlx_job(tiny, steps=6, dropout=0.2)
    session, expected = run(job, rows, tmp_path / "whole", save_at=(3,))
    careful = msgspec.structs.replace(resumed(job, session.checkpoint(3)), gradient_checkpointing=True)
    _, result = run(resumed(job, session.checkpoint(3)), rows, tmp_path / "again")
    assert result is not None
    assert expected is not None
    assert result.digest == expected.digest
    _, checkpointed = run(careful, rows, tmp_path / "careful")
    assert checkpointed is not None
    assert (checkpointed.order, checkpointed.digest) == (expected.order, expected.digest)


def test_layers_that_are_computed_again_come_to_the_same_weights(
    tiny: Path, rows: Prepared, whole: Whole, tmp_path: Path
) -> None:
    job = resumed(mlx_job(tiny, steps=10), whole[0].checkpoint(8))
    _, result = run(msgspec.structs.replace(job, gradient_checkpointing=True), rows, tmp_path)
    assert _distance(result, whole[1]) < 1e-6


@pytest.mark.parametrize("order", ["random", "given", "grouped"])
def test_torch_and_mlx_see_the_same_samples_and_learn_the_same(
    cpu: CpuBackend, tiny: Path, rows: Prepared, tmp_path: Path, order: str
) -> None:
    """From the same adapter, in float32, by AdamW with its bias corrected, clipped, on a cosine with a warm-up."""

    def changed(job: TrainJob, adapter: str | None) -> TrainJob:
        data = msgspec.structs.replace(job.spec.data, order="given" if order == "given" else "random")
        train = msgspec.structs.replace(job.spec.train, group_by_length=order == "grouped")
        return msgspec.structs.replace(
            job, spec=msgspec.structs.replace(job.spec, data=data, train=train, init_adapter=adapter)
        )

    begin = torch_run(cpu, make_job(tiny, steps=1), rows, tmp_path / "begin").done.adapter
    there = torch_run(cpu, changed(make_job(tiny, steps=9), begin), rows, tmp_path / "torch")
    here, result = run(changed(mlx_job(tiny, steps=9), begin), rows, tmp_path / "mlx")
    assert result is not None
    assert result.order == there.done.order
    for step, loss in there.losses().items():
        assert _losses(here)[step] == pytest.approx(loss, abs=2e-4)
    theirs, ours = there.weights(), weights(result)
    assert theirs.keys() == ours.keys()
    assert max(float(np.abs(theirs[name].numpy() - ours[name]).max()) for name in ours) < 2e-3
