"""The cuda backend without a GPU says which part is missing; on a GPU it trains."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from backpropagate_backends.cpu import CpuBackend
from backpropagate_backends.cuda import CudaBackend, see_one_gpu
from backpropagate_protocol.errors import GPUNotAvailableError
from backpropagate_protocol.jobs import Candidate, EvaluateJob, TrainJob
from backpropagate_protocol.prepared import Prepared
from backpropagate_protocol.spec import PlannedFault
from tests.backends.torch_runs import FOREIGN_WARNINGS, distance, halved, resumed, run
from tests.backends.torch_session import KeepingSession, make_job


def test_without_a_gpu_the_missing_part_is_named(cpu: CpuBackend, tiny: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(GPUNotAvailableError) as caught:
        CudaBackend().check(make_job(tiny))
    part = "build without CUDA" if torch.version.cuda is None else "no driver or no card"
    assert part in caught.value.message
    assert "--backend cpu" in caught.value.suggestion


@pytest.mark.parametrize(("visible", "expected"), [(None, "0"), ("2,3", "2"), ("1", "1"), ("", "")])
def test_one_gpu_is_seen_of_many(visible: str | None, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    see_one_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == expected


@pytest.fixture(scope="module")
def cuda(cpu: CpuBackend) -> CudaBackend:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    backend = CudaBackend()
    backend.warm()
    return backend


# Imports what a runner imports while it has no Job, then asks the driver: 3 is "not even initialised".
_WAITING = """
import ctypes
from backpropagate_runner.frameworks import Frameworks
Frameworks("auto").backend("auto")
flags, active = ctypes.c_uint(), ctypes.c_int()
answer = ctypes.CDLL("libcuda.so.1").cuDevicePrimaryCtxGetState(0, ctypes.byref(flags), ctypes.byref(active))
assert answer == 3 or (answer == 0 and not active.value), (answer, active.value)
"""


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="asks the driver by its name on Linux")
@pytest.mark.usefixtures("cuda")
def test_on_a_gpu_imports_alone_take_nothing_of_the_card() -> None:
    subprocess.run([sys.executable, "-P", "-c", _WAITING], check=True, timeout=300)


@pytest.mark.gpu
@pytest.mark.slow
@FOREIGN_WARNINGS
@pytest.mark.parametrize("four_bit", [False, True])
def test_on_a_gpu_a_halved_resume_sees_the_same_samples(
    cuda: CudaBackend, tiny: Path, rows: Prepared, tmp_path: Path, four_bit: bool
) -> None:
    job = make_job(tiny, four_bit=four_bit, micro_batch=4, backend="cuda")
    cuda.check(job)
    whole = run(cuda, job, rows, tmp_path / "a", save_at=[5])
    begun = whole.session.begun
    assert begun is not None
    assert begun.gpu_uuid.startswith("GPU-")
    assert begun.device_memory > 0
    assert whole.session.progress[-1].memory_used > 0
    again = run(cuda, halved(resumed(job, whole.session.checkpoint(5))), rows, tmp_path / "b")
    assert again.done.order == whole.done.order
    assert isinstance(again.session, KeepingSession)


@pytest.mark.gpu
@pytest.mark.slow
@FOREIGN_WARNINGS
@pytest.mark.parametrize("four_bit", [False, True])
def test_on_a_gpu_a_run_begins_from_an_adapters_very_weights_and_is_scored(
    cpu: CpuBackend, cuda: CudaBackend, tiny: Path, rows: Prepared, tmp_path: Path, four_bit: bool
) -> None:
    from tests.backends.test_torch_evaluate import Heard
    from tests.backends.test_torch_init import beginning

    job = make_job(tiny, four_bit=four_bit, dtype="fp32", steps=6, backend="cuda")
    adapter = run(cuda, job, rows, tmp_path / "a").done
    still = beginning(job, adapter.adapter, steps=1, learning_rate=0.0)
    assert run(cuda, still, rows, tmp_path / "b").done.digest == adapter.digest
    wish = EvaluateJob(
        model=job.spec.model,
        candidates=(Candidate("base", None), Candidate("trained", adapter.adapter)),
        tasks=(),
        cache="",
    )
    on_gpu, on_cpu = (backend.evaluate(wish, [rows], Heard()) for backend in (cuda, cpu))
    assert [score.loss for score in on_gpu] == pytest.approx([score.loss for score in on_cpu], abs=1e-2)
    assert on_gpu[1].loss < on_gpu[0].loss


@pytest.mark.gpu
@pytest.mark.slow
@FOREIGN_WARNINGS
def test_on_a_gpu_every_weight_is_trained_in_bf16_with_paged_moments(
    cuda: CudaBackend, tiny: Path, rows: Prepared, tmp_path: Path
) -> None:
    job = changed(make_job(tiny, micro_batch=4, steps=8, backend="cuda"), "train", mode="full")
    cuda.check(job)
    whole = run(cuda, job, rows, tmp_path / "a", save_at=[4])
    begun = whole.session.begun
    assert begun is not None
    assert (begun.precision, begun.optimizer) == ("bf16", "paged_adamw_8bit")
    assert begun.trainable_parameters == begun.parameters
    again = run(cuda, halved(resumed(job, whole.session.checkpoint(4))), rows, tmp_path / "b")
    assert again.done.order == whole.done.order
    assert again.done.final_loss == pytest.approx(whole.done.final_loss, abs=0.05)


@pytest.mark.gpu
@pytest.mark.slow
@FOREIGN_WARNINGS
def test_on_a_gpu_a_base_in_eight_bit_floats_teaches_the_same(
    cuda: CudaBackend, tiny: Path, rows: Prepared, tmp_path: Path
) -> None:
    import torch

    if torch.cuda.get_device_capability(0) < (8, 9):
        pytest.skip("needs an NVIDIA GPU that multiplies 8-bit floats")
    plain = make_job(tiny, micro_batch=4, steps=8, backend="cuda", four_bit=False)
    job = changed(make_job(tiny, micro_batch=4, steps=8, backend="cuda"), "train", fp8=True)
    cuda.check(job)
    rounded = run(cuda, job, rows, tmp_path / "a", save_at=[4])
    assert rounded.session.begun is not None
    assert rounded.session.begun.precision == "fp8+bf16"
    exact = run(cuda, plain, rows, tmp_path / "b")
    assert list(rounded.losses().values()) == pytest.approx(list(exact.losses().values()), abs=0.05)
    again = run(cuda, halved(resumed(job, rounded.session.checkpoint(4))), rows, tmp_path / "c")
    assert again.done.order == rounded.done.order


def changed(job: TrainJob, part: str, **changes: object) -> TrainJob:
    """The same with other values in `part` of its spec."""
    new = msgspec.structs.replace(getattr(job.spec, part), **changes)
    return msgspec.structs.replace(job, spec=msgspec.structs.replace(job.spec, **{part: new}))


@pytest.mark.gpu
@pytest.mark.slow
@FOREIGN_WARNINGS
def test_on_a_gpu_rows_side_by_side_are_the_training_that_padding_is(
    cuda: CudaBackend, tiny: Path, rows: Prepared, tmp_path: Path
) -> None:
    """By torch's variable-length kernel, where the card has it."""
    from backpropagate_backends.torch_attention import varlen_available
    from tests.backends.test_torch_kernels import wished

    def trained(packing: bool) -> list[float | None]:
        job = wished(tiny, packing=packing)
        spec = msgspec.structs.replace(job.spec, backend="cuda")
        done = run(cuda, msgspec.structs.replace(job, spec=spec), rows, tmp_path / str(packing))
        begun = done.session.begun
        assert begun is not None
        if packing and varlen_available("cuda"):
            assert "attention: torch's variable-length flash attention" in begun.notes
        return list(done.losses().values())

    assert trained(packing=True) == pytest.approx(trained(packing=False), abs=2e-2)


@pytest.mark.gpu
@pytest.mark.slow
@FOREIGN_WARNINGS
def test_on_a_gpu_a_step_done_anew_gets_its_memory_back_and_sees_the_same_samples(
    cuda: CudaBackend, tiny: Path, rows: Prepared, tmp_path: Path
) -> None:
    job = make_job(tiny, micro_batch=4, backend="cuda")
    cuda.check(job)
    whole = run(cuda, job, rows, tmp_path / "whole")
    faults = (PlannedFault("hang", 99),)  # planned, so that shortages in the backward pass are looked for
    planned = msgspec.structs.replace(job, spec=msgspec.structs.replace(job.spec, faults=faults), rehearse=0)
    short = msgspec.structs.replace(planned, smaller=(2, 1))
    again = run(cuda, short, rows, tmp_path / "short", short_at=[("backward", 0, 1), ("backward", 5, 1)])
    assert again.session.sizes == [(0, 2), (5, 1)]
    assert again.orders() == whole.orders()
    assert distance(again, whole) < 1e-2
