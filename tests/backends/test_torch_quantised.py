"""4-bit base weights: the adapters stay float32, before a resume as after it, and so the resume is exact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backpropagate_backends.cpu import CpuBackend
from backpropagate_protocol.prepared import Prepared
from tests.backends.torch_runs import FOREIGN_WARNINGS, Run, distance, halved, resumed, run
from tests.backends.torch_session import make_job

pytest.importorskip("bitsandbytes")
pytestmark = [pytest.mark.slow, FOREIGN_WARNINGS]


@pytest.fixture(scope="module")
def whole(cpu: CpuBackend, tiny: Path, rows: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Run:
    job = make_job(tiny, four_bit=True, steps=8)
    return run(cpu, job, rows, tmp_path_factory.mktemp("nf4"), save_at=[4])


def test_the_base_is_held_in_four_bits_and_counted_as_what_it_stands_for(
    cpu: CpuBackend, tiny: Path, rows: Prepared, whole: Run, tmp_path: Path
) -> None:
    plain = run(cpu, make_job(tiny, steps=1), rows, tmp_path).session.begun
    begun = whole.session.begun
    assert begun is not None
    assert plain is not None
    assert (begun.precision, plain.precision) == ("nf4+fp32", "fp32")
    assert begun.parameters == plain.parameters


def test_adapters_and_their_moments_are_float32(whole: Run) -> None:
    assert {tensor.dtype for tensor in whole.weights().values()} == {torch.float32}
    optimizer = torch.load(whole.session.checkpoint(4) / "optimizer.pt", weights_only=True)
    assert {entry["exp_avg"].dtype for entry in optimizer["state"].values()} == {torch.float32}


def test_a_resume_is_bit_identical(cpu: CpuBackend, tiny: Path, rows: Prepared, whole: Run, tmp_path: Path) -> None:
    job = make_job(tiny, four_bit=True, steps=8)
    again = run(cpu, resumed(job, whole.session.checkpoint(4)), rows, tmp_path)
    assert again.done.digest == whole.done.digest


def test_a_halved_batch_sees_the_same_samples(
    cpu: CpuBackend, tiny: Path, rows: Prepared, whole: Run, tmp_path: Path
) -> None:
    job = make_job(tiny, four_bit=True, steps=8)
    again = run(cpu, halved(resumed(job, whole.session.checkpoint(4))), rows, tmp_path)
    assert again.done.order == whole.done.order
    assert distance(again, whole) < 1e-5


def test_eight_bit_moments_resume_bit_identical(cpu: CpuBackend, tiny: Path, rows: Prepared, tmp_path: Path) -> None:
    job = make_job(tiny, four_bit=True, steps=6, optim="adamw_bnb_8bit")
    first = run(cpu, job, rows, tmp_path / "a", save_at=[3])
    again = run(cpu, resumed(job, first.session.checkpoint(3)), rows, tmp_path / "b")
    assert again.done.digest == first.done.digest
