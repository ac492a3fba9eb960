"""A training that begins from an adapter: with its very weights, in every precision, or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from backpropagate_backends.cpu import CpuBackend
from backpropagate_protocol.errors import UserInputError
from backpropagate_protocol.jobs import TrainJob
from backpropagate_protocol.prepared import Prepared
from backpropagate_protocol.spec import LoraSpec
from tests.backends.torch_runs import FOREIGN_WARNINGS, Run, distance, halved, resumed, run
from tests.backends.torch_session import make_job

pytestmark = [pytest.mark.slow, FOREIGN_WARNINGS]

WEIGHTS = "adapter_model.safetensors"


def beginning(job: TrainJob, adapter: Path | str, lora: LoraSpec | None = None, **train: object) -> TrainJob:
    spec = job.spec
    return msgspec.structs.replace(
        job,
        spec=msgspec.structs.replace(
            spec,
            init_adapter=str(adapter),
            lora=lora or spec.lora,
            train=msgspec.structs.replace(spec.train, **train),
        ),
    )


@pytest.fixture(scope="module")
def first(cpu: CpuBackend, tiny: Path, rows: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(cpu, make_job(tiny, steps=3), rows, tmp_path_factory.mktemp("first"))


@pytest.fixture
def adapter(first: Run, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(first.done.adapter, tmp_path / "adapter"))


@pytest.fixture(scope="module")
def whole(cpu: CpuBackend, tiny: Path, rows: Prepared, first: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    job = beginning(make_job(tiny, steps=10), first.done.adapter)
    return run(cpu, job, rows, tmp_path_factory.mktemp("whole"), save_at=(1, 8))


@pytest.mark.parametrize(
    "lora",
    [
        LoraSpec(r=8, alpha=16),
        LoraSpec(r=4, alpha=3, use_rslora=True, targets=("q_proj", "down_proj")),
        LoraSpec(r=4, alpha=8, use_dora=True, init="gaussian"),
    ],
)
def test_every_kind_of_adapter_comes_back_bit_by_bit(
    cpu: CpuBackend, tiny: Path, rows: Prepared, tmp_path: Path, lora: LoraSpec
) -> None:
    """A step of learning rate 0 changes nothing, whatever the seed that the fresh adapter was made with."""
    job = make_job(tiny, steps=2)
    job = msgspec.structs.replace(job, spec=msgspec.structs.replace(job.spec, lora=lora))
    trained = run(cpu, job, rows, tmp_path / "a")
    still = run(
        cpu,
        beginning(job, trained.done.adapter, lora, steps=1, learning_rate=0.0, seed=99),
        rows,
        tmp_path / "b",
    )
    assert still.done.digest == trained.done.digest


def test_nothing_is_rounded_where_the_base_is_held_in_four_bits(
    cpu: CpuBackend, tiny: Path, rows: Prepared, first: Run, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    job = beginning(make_job(tiny, four_bit=True), first.done.adapter, steps=1, learning_rate=0.0)
    assert run(cpu, job, rows, tmp_path).done.digest == first.done.digest


@pytest.mark.parametrize("place", [1, 8])
def test_it_resumes_bit_identical_without_the_adapter_that_it_began_from(
    cpu: CpuBackend, tiny: Path, rows: Prepared, whole: Run, tmp_path: Path, place: int
) -> None:
    job = beginning(make_job(tiny, steps=10), tmp_path / "gone")
    again = run(cpu, resumed(job, whole.session.checkpoint(place)), rows, tmp_path)
    assert again.done.digest == whole.done.digest


def test_it_trains_on_from_there(
    cpu: CpuBackend, tiny: Path, rows: Prepared, whole: Run, first: Run, tmp_path: Path
) -> None:
    fresh = run(cpu, make_job(tiny, steps=10), rows, tmp_path)
    assert whole.orders() == fresh.orders()
    began, anew = whole.losses()[1], fresh.losses()[1]
    assert began is not None
    assert anew is not None
    assert began < anew
    assert distance(whole, first) > 1e-4


def test_a_halved_batch_begins_from_it_too(
    cpu: CpuBackend, tiny: Path, rows: Prepared, whole: Run, first: Run, tmp_path: Path
) -> None:
    half = run(cpu, halved(beginning(make_job(tiny, steps=10), first.done.adapter)), rows, tmp_path)
    assert half.orders() == whole.orders()
    assert distance(half, whole) < 1e-6


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        (LoraSpec(r=4, alpha=16), "its r is 8, and this run's is 4"),
        (LoraSpec(r=8, alpha=8), "its lora_alpha is 16, and this run's is 8"),
        (LoraSpec(r=8, alpha=16, use_rslora=True), "its use_rslora is False, and this run's is True"),
        (LoraSpec(r=8, alpha=16, use_dora=True), "its use_dora is False, and this run's is True"),
        (
            LoraSpec(r=8, alpha=16, targets=("q_proj",)),
            r"this run does not train its base_model\.model\..+ and \d+ more",
        ),
    ],
)
def test_an_adapter_of_another_kind_is_refused_by_name(
    cpu: CpuBackend, tiny: Path, rows: Prepared, adapter: Path, tmp_path: Path, lora: LoraSpec, words: str
) -> None:
    with pytest.raises(UserInputError, match=f"(?s){words}") as caught:
        run(cpu, beginning(make_job(tiny), adapter, lora), rows, tmp_path)
    assert caught.value.code == "INPUT_ADAPTER_MISMATCH"


def test_tensors_that_were_left_out_or_are_not_finite_are_refused(
    cpu: CpuBackend, tiny: Path, rows: Prepared, adapter: Path, tmp_path: Path
) -> None:
    tensors = load_file(adapter / WEIGHTS)
    name = next(iter(tensors))
    save_file({**tensors, name: torch.full_like(tensors[name], torch.nan)}, adapter / WEIGHTS)
    with pytest.raises(UserInputError, match=f"its {name} is not finite"):
        run(cpu, beginning(make_job(tiny), adapter), rows, tmp_path)
    del tensors[name]
    save_file(tensors, adapter / WEIGHTS)
    with pytest.raises(UserInputError, match=f"it has no {name}"):
        run(cpu, beginning(make_job(tiny), adapter), rows, tmp_path)
    (adapter / WEIGHTS).write_bytes(b"torn")
    with pytest.raises(UserInputError, match=f"its {WEIGHTS} cannot be read"):
        run(cpu, beginning(make_job(tiny), adapter), rows, tmp_path)
