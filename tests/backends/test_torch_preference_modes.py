"""Preference training in the modes of SFT: 4-bit bases, gradient checkpointing, dropout, other architectures; and refusals."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from backpropagate_backends.cpu import CpuBackend
from backpropagate_protocol.errors import DatasetError, InvalidSettingError
from backpropagate_protocol.jobs import TrainJob
from tests.backends.preferences import make_pairs, make_preferences, preference_job
from tests.backends.torch_runs import FOREIGN_WARNINGS, distance, halved, resumed, run

pytestmark = [pytest.mark.slow, FOREIGN_WARNINGS]


@pytest.mark.parametrize("method", ["orpo", "kto"])
def test_over_a_four_bit_base_a_resume_is_bit_identical_and_a_halving_exact(
    cpu: CpuBackend, tiny: Path, tmp_path: Path, method: str
) -> None:
    pytest.importorskip("bitsandbytes")
    data, job = make_preferences(method, tmp_path / "data"), preference_job(tiny, method, {"steps": 4}, four_bit=True)
    whole = run(cpu, job, data, tmp_path / "whole", save_at=[2])
    again = resumed(job, whole.session.checkpoint(2))
    assert run(cpu, again, data, tmp_path / "again").done.digest == whole.done.digest
    half = run(cpu, halved(again), data, tmp_path / "half")
    assert half.done.order == whole.done.order
    assert distance(half, whole) < 2e-5


@pytest.mark.parametrize("method", ["orpo", "dpo", "kto"])
def test_gradient_checkpointing_changes_no_bit(cpu: CpuBackend, tiny: Path, tmp_path: Path, method: str) -> None:
    data, job = make_preferences(method, tmp_path / "data"), preference_job(tiny, method, {"steps": 3})
    checkpointed = msgspec.structs.replace(job, gradient_checkpointing=True)
    digests = [run(cpu, one, data, tmp_path / str(at)).done.digest for at, one in enumerate((job, checkpointed))]
    assert digests[0] == digests[1]


def test_dropout_is_of_the_trained_adapter_alone_and_resumes_bit_identical(
    cpu: CpuBackend, tiny: Path, tmp_path: Path
) -> None:
    plain = preference_job(tiny, "dpo", {"steps": 4})
    lora = msgspec.structs.replace(plain.spec.lora, dropout=0.2)
    job = msgspec.structs.replace(plain, spec=msgspec.structs.replace(plain.spec, lora=lora))
    data = make_pairs(tmp_path / "data")
    whole = run(cpu, job, data, tmp_path / "whole", save_at=[2])
    again = run(cpu, resumed(job, whole.session.checkpoint(2)), data, tmp_path / "again")
    assert again.done.digest == whole.done.digest
    assert whole.done.digest != run(cpu, plain, data, tmp_path / "plain").done.digest


def test_a_model_whose_forward_takes_no_loss_arguments_has_the_same_losses_when_halved(
    cpu: CpuBackend, tmp_path: Path
) -> None:
    from tests.backends.tiny_model import make_gemma

    data, job = make_pairs(tmp_path / "data"), preference_job(make_gemma(tmp_path / "gemma"), "orpo", {"steps": 3})
    whole, half = run(cpu, job, data, tmp_path / "whole"), run(cpu, halved(job), data, tmp_path / "half")
    assert half.losses() == pytest.approx(whole.losses(), abs=1e-5)


def test_pairs_of_similar_length_share_a_step_whatever_the_micro_batch(
    cpu: CpuBackend, tiny: Path, tmp_path: Path
) -> None:
    data, job = make_pairs(tmp_path / "data"), preference_job(tiny, "simpo", {"steps": 4, "group_by_length": True})
    whole, half = run(cpu, job, data, tmp_path / "whole"), run(cpu, halved(job), data, tmp_path / "half")
    plain = run(cpu, preference_job(tiny, "simpo", {"steps": 4}), data, tmp_path / "plain")
    assert half.orders() == whole.orders() != plain.orders()
    assert distance(half, whole) < 2e-5


def test_one_pair_alone_ends_an_epoch(cpu: CpuBackend, tiny: Path, tmp_path: Path) -> None:
    """5 samples are a step of 4 and one of 1, which for KTO has no neighbour in its step."""
    from tests.backends.preferences import make_labelled

    job = preference_job(tiny, "kto", {"steps": 3})
    data = make_labelled(tmp_path / "data", rows=5)
    whole, half = run(cpu, job, data, tmp_path / "whole"), run(cpu, halved(job), data, tmp_path / "half")
    assert [step.samples_seen for step in whole.session.progress] == [4, 5, 9]
    assert half.losses() == pytest.approx(whole.losses(), abs=1e-5)


def test_good_and_bad_answers_that_weigh_too_differently_are_told_once(
    cpu: CpuBackend, tiny: Path, tmp_path: Path
) -> None:
    from tests.backends.preferences import make_labelled

    data = make_labelled(tmp_path / "data")  # 10 good answers, 5 bad ones
    plain = run(cpu, preference_job(tiny, "kto", {"steps": 1}), data, tmp_path / "a", save_at=[1])
    assert "--kto-undesirable-weight 2.00" in " ".join(plain.session.notices)
    job = preference_job(tiny, "kto", {"steps": 1, "undesirable_weight": 2.0})
    weighed = run(cpu, job, data, tmp_path / "b", save_at=[1])
    again = run(cpu, resumed(job, weighed.session.checkpoint(1)), data, tmp_path / "c")
    assert not any("weigh" in notice for notice in (*weighed.session.notices, *again.session.notices))


@pytest.mark.parametrize(
    ("method", "part", "changes", "words"),
    [
        ("orpo", "train", {"mode": "full"}, "full"),
        ("simpo", "train", {"beta": 0.0}, "beta"),
        ("simpo", "train", {"gamma": -1.0}, "gamma"),
        ("kto", "train", {"desirable_weight": 0.0}, "weights"),
        ("dpo", "data", {"packing": True}, "packing"),
    ],
)
def test_what_does_not_go_with_a_preference_method_is_refused(
    cpu: CpuBackend, tiny: Path, method: str, part: str, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(InvalidSettingError, match=words):
        cpu.check(_with(preference_job(tiny, method), part, changes))


def test_a_micro_batch_of_one_is_refused_for_kto_alone(cpu: CpuBackend, tiny: Path) -> None:
    cpu.check(halved(preference_job(tiny, "orpo"), 2))
    cpu.check(halved(preference_job(tiny, "kto")))
    with pytest.raises(InvalidSettingError, match="at least 2"):
        cpu.check(halved(preference_job(tiny, "kto"), 2))


def test_a_reference_that_is_not_the_base_is_refused(cpu: CpuBackend, tiny: Path) -> None:
    for method in ("dpo", "kto"):
        job = preference_job(tiny, method)
        begun = msgspec.structs.replace(job, spec=msgspec.structs.replace(job.spec, init_adapter=str(tiny)))
        with pytest.raises(InvalidSettingError, match="adapter"):
            cpu.check(begun)


def test_data_of_another_kind_are_refused(cpu: CpuBackend, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="labelled"):
        run(cpu, preference_job(tiny, "kto"), make_pairs(tmp_path / "data"), tmp_path)


def _with(job: TrainJob, part: str, changes: dict[str, object]) -> TrainJob:
    new = msgspec.structs.replace(getattr(job.spec, part), **changes)
    return msgspec.structs.replace(job, spec=msgspec.structs.replace(job.spec, **{part: new}))
