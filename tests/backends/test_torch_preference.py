"""Preference training resumed and halved: on variable lengths, the same samples and the same weights as if nothing happened."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pytest

from backpropagate_backends.cpu import CpuBackend
from backpropagate_protocol.prepared import Prepared
from tests.backends.preferences import make_preferences, preference_job
from tests.backends.torch_runs import FOREIGN_WARNINGS, Run, distance, halved, resumed, run

pytestmark = [pytest.mark.slow, FOREIGN_WARNINGS]

METHODS = ("orpo", "simpo", "dpo", "kto")
WISHES: dict[str, dict[str, object]] = {"kto": {"beta": 1.0}}  # so that the drift weighs something
MEASURES = {"accuracy", "margin", "chosen_reward", "rejected_reward"}


@dataclass(frozen=True)
class Whole:
    """8 steps of 4 samples, uninterrupted: an epoch of 15 samples is 3 steps and one of 3, which halves unevenly."""

    method: str
    data: Prepared
    run: Run


@pytest.fixture(scope="module", params=METHODS)
def whole(
    request: pytest.FixtureRequest, cpu: CpuBackend, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> Whole:
    method: str = request.param
    folder = tmp_path_factory.mktemp(method)
    data = make_preferences(method, folder / "data")
    return Whole(method, data, run(cpu, preference_job(tiny, method, WISHES.get(method)), data, folder, save_at=(2, 6)))


@pytest.mark.parametrize("place", [2, 6])
def test_a_resume_at_the_same_batch_is_bit_identical(
    cpu: CpuBackend, tiny: Path, whole: Whole, tmp_path: Path, place: int
) -> None:
    job = resumed(preference_job(tiny, whole.method, WISHES.get(whole.method)), whole.run.session.checkpoint(place))
    again = run(cpu, job, whole.data, tmp_path)
    assert again.done.digest == whole.run.done.digest
    assert [step.extra for step in again.session.progress] == [s.extra for s in whole.run.session.progress[place:]]


def test_a_halved_batch_sees_the_same_samples_and_measures_the_same(
    cpu: CpuBackend, tiny: Path, whole: Whole, tmp_path: Path
) -> None:
    job = halved(resumed(preference_job(tiny, whole.method, WISHES.get(whole.method)), whole.run.session.checkpoint(2)))
    again = run(cpu, job, whole.data, tmp_path)
    assert again.orders() == {step: order for step, order in whole.run.orders().items() if step > 2}
    assert distance(again, whole.run) < 2e-5
    for one, other in zip(again.session.progress, whole.run.session.progress[2:], strict=True):
        assert one.loss == pytest.approx(other.loss, abs=1e-5)
        assert one.extra == pytest.approx(other.extra, abs=1e-4)


def test_what_is_measured_is_finite_and_the_answers_are_told_apart(whole: Whole) -> None:
    steps = [step.extra for step in whole.run.session.progress]
    more = {"orpo": {"nll"}, "kto": {"kl"}}.get(whole.method, set())
    assert MEASURES | more <= set().union(*steps)
    assert all(math.isfinite(value) for step in steps for value in step.values())
    margins = [step["margin"] for step in steps if "margin" in step]  # a step of kto may have answers of one kind only
    assert margins[-1] > margins[0]
    if whole.method == "kto":
        assert any(step["kl"] > 0 for step in steps)  # else a halving would prove nothing of it
