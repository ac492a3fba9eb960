"""Resumed, halved, killed: on real TRL runs, the same samples and the same weights as if nothing had happened."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from backpropagate_backends.cpu import CpuBackend
from backpropagate_protocol.prepared import Prepared
from tests.backends.torch_runs import FOREIGN_WARNINGS, Run, distance, halved, resumed, run
from tests.backends.torch_session import Killed, make_job

pytestmark = [pytest.mark.slow, FOREIGN_WARNINGS]

# The first step, the middle of an epoch, its boundary (30 rows make 8 steps of 4), the middle of the second.
PLACES = (1, 5, 8, 10)


@pytest.fixture(scope="module")
def whole(cpu: CpuBackend, tiny: Path, rows: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """12 steps of 4 samples, uninterrupted, with a checkpoint at each of PLACES and at the end."""
    return run(cpu, make_job(tiny), rows, tmp_path_factory.mktemp("whole"), save_at=(*PLACES, 12))


@pytest.mark.parametrize("place", PLACES)
def test_a_resume_at_the_same_batch_is_bit_identical(
    cpu: CpuBackend, tiny: Path, rows: Prepared, whole: Run, tmp_path: Path, place: int
) -> None:
    again = run(cpu, resumed(make_job(tiny), whole.session.checkpoint(place)), rows, tmp_path)
    assert again.done.digest == whole.done.digest
    assert again.losses() == {step: loss for step, loss in whole.losses().items() if step > place}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("times", [1, 2])
def test_a_halved_batch_sees_the_same_samples(
    cpu: CpuBackend, tiny: Path, rows: Prepared, whole: Run, tmp_path: Path, place: int, times: int
) -> None:
    again = run(cpu, halved(resumed(make_job(tiny), whole.session.checkpoint(place)), times), rows, tmp_path)
    assert again.orders() == {step: order for step, order in whole.orders().items() if step > place}
    assert distance(again, whole) < 1e-6


def test_a_run_that_begins_with_half_the_batch_sees_the_same_samples(
    cpu: CpuBackend, tiny: Path, rows: Prepared, whole: Run, tmp_path: Path
) -> None:
    half = run(cpu, halved(make_job(tiny)), rows, tmp_path)
    assert half.orders() == whole.orders()
    assert distance(half, whole) < 1e-6


def test_a_resume_in_a_fresh_process_is_bit_identical(tiny: Path, rows: Prepared, whole: Run, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.backends.torch_runs"]
    arguments = [tiny, rows.folder, whole.session.checkpoint(5), tmp_path]
    child = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=120
    )
    assert child.stdout.strip() == whole.done.digest, child.stderr


def test_what_was_done_after_the_last_checkpoint_is_done_again_the_same_way(
    cpu: CpuBackend, tiny: Path, rows: Prepared, whole: Run, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        run(cpu, make_job(tiny), rows, tmp_path, save_at=[3], kill_before=7)
    checkpoint = tmp_path / "checkpoints" / "step-00000003"
    again = run(cpu, resumed(make_job(tiny), checkpoint), rows, tmp_path)
    assert again.done.digest == whole.done.digest


def test_a_stopped_run_returns_nothing_and_resumes_as_if_it_had_not_stopped(
    cpu: CpuBackend, tiny: Path, rows: Prepared, whole: Run, tmp_path: Path
) -> None:
    stopped = run(cpu, make_job(tiny), rows, tmp_path, stop_at=6)
    assert stopped.result is None
    again = run(cpu, resumed(make_job(tiny), stopped.session.checkpoint(6)), rows, tmp_path)
    assert again.done.digest == whole.done.digest


def test_a_run_that_died_after_its_last_step_does_none_more(
    cpu: CpuBackend, tiny: Path, rows: Prepared, whole: Run, tmp_path: Path
) -> None:
    again = run(cpu, resumed(make_job(tiny), whole.session.checkpoint(12)), rows, tmp_path)
    assert again.session.progress == []
    assert again.done.digest == whole.done.digest
    assert (again.done.step, again.done.samples_seen, again.done.order) == (12, 46, whole.done.order)
    assert again.done.final_loss == whole.done.final_loss


def test_two_halvings_in_one_run_add_up(
    cpu: CpuBackend, tiny: Path, rows: Prepared, whole: Run, tmp_path: Path
) -> None:
    job = make_job(tiny)
    run(cpu, halved(resumed(job, whole.session.checkpoint(1))), rows, tmp_path / "a", stop_at=6)
    checkpoint = tmp_path / "a" / "checkpoints" / "step-00000006"
    last = run(cpu, halved(resumed(job, checkpoint), 2), rows, tmp_path / "b")
    assert last.done.order == whole.done.order
    assert distance(last, whole) < 1e-6


def test_epochs_count_like_steps(cpu: CpuBackend, tiny: Path, rows: Prepared, tmp_path: Path) -> None:
    job = make_job(tiny, steps=None, epochs=1.5)
    by_epochs = run(cpu, job, rows, tmp_path / "a", save_at=[9])
    assert by_epochs.done.step == 12
    assert by_epochs.done.samples_seen == 46  # an epoch of 30, then 4 steps of 4
    again = run(cpu, halved(resumed(job, by_epochs.session.checkpoint(9))), rows, tmp_path / "b")
    assert again.done.order == by_epochs.done.order


def test_gradient_checkpointing_changes_no_bit(
    cpu: CpuBackend, tiny: Path, rows: Prepared, whole: Run, tmp_path: Path
) -> None:
    job = make_job(tiny, gradient_checkpointing=True)
    again = run(cpu, resumed(job, whole.session.checkpoint(5)), rows, tmp_path)
    assert again.done.digest == whole.done.digest


def test_dropout_resumes_bit_identical_and_halves_with_the_same_samples(
    cpu: CpuBackend, tiny: Path, rows: Prepared, tmp_path: Path
) -> None:
    job = make_job(tiny, dropout=0.1)
    dropped = run(cpu, job, rows, tmp_path / "a", save_at=[5])
    assert dropped.session.begun is not None
    assert "dropout" in dropped.session.begun.notes[0]
    checkpoint = dropped.session.checkpoint(5)
    assert run(cpu, resumed(job, checkpoint), rows, tmp_path / "b").done.digest == dropped.done.digest
    assert run(cpu, halved(resumed(job, checkpoint)), rows, tmp_path / "c").done.order == dropped.done.order


def test_another_seed_is_another_order(cpu: CpuBackend, tiny: Path, rows: Prepared, whole: Run, tmp_path: Path) -> None:
    assert run(cpu, make_job(tiny, seed=8), rows, tmp_path).done.order != whole.done.order


def test_every_epoch_sees_every_sample_once(
    cpu: CpuBackend, tiny: Path, rows: Prepared, whole: Run, tmp_path: Path
) -> None:
    seen = [progress.samples_seen for progress in whole.session.progress]
    assert seen == [4, 8, 12, 16, 20, 24, 28, 30, 34, 38, 42, 46]
    assert whole.session.progress[7].tokens == len(rows.tokens)


def test_started_says_what_really_runs(whole: Run) -> None:
    begun = whole.session.begun
    assert begun is not None
    assert (begun.micro_batch, begun.accumulation, begun.step, begun.total_steps) == (4, 1, 0, 12)
    assert (begun.device, begun.precision) == ("cpu", "fp32")
    assert begun.trainable_parameters == sum(tensor.numel() for tensor in whole.weights().values())


def test_a_model_whose_forward_takes_no_loss_arguments_has_the_same_losses_when_halved(
    cpu: CpuBackend, rows: Prepared, tmp_path: Path
) -> None:
    """Left alone, the Trainer would average the micro-batches of a Gemma 4 as if all had the same number of tokens."""
    from tests.backends.tiny_model import make_gemma

    gemma = make_gemma(tmp_path / "gemma")
    whole = run(cpu, make_job(gemma, steps=4), rows, tmp_path / "whole")
    half = run(cpu, halved(make_job(gemma, steps=4)), rows, tmp_path / "half")
    assert half.losses() == pytest.approx(whole.losses(), abs=1e-5)
