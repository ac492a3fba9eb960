"""Memory that runs out, on real TRL runs: the step is done anew in smaller parts, and the rest of the run is to the bit the one
that a fresh process makes of it with the smaller micro-batch."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch

from backpropagate_backends.base import Directive, HeldOut, Score
from backpropagate_backends.cpu import CpuBackend
from backpropagate_protocol.jobs import TrainJob
from backpropagate_protocol.messages import Progress
from backpropagate_protocol.prepared import Prepared
from backpropagate_protocol.spec import PlannedFault
from tests.backends.preferences import make_preferences, preference_job
from tests.backends.torch_runs import FOREIGN_WARNINGS, Run, resumed, run
from tests.backends.torch_session import KeepingSession, make_data, make_job

pytestmark = [pytest.mark.slow, FOREIGN_WARNINGS]

Shortages = tuple[tuple[str, int, int], ...]


def _planned(job: TrainJob) -> TrainJob:
    """Shortages in the middle of the backward pass are looked for only in runs that plan faults."""
    return msgspec.structs.replace(job, spec=msgspec.structs.replace(job.spec, faults=(PlannedFault("hang", 99),)))


def _job(tiny: Path, micro_batch: int = 6, smaller: tuple[int, ...] = (), rehearse: int | None = None) -> TrainJob:
    """5 steps of 12 samples; the third ends the epoch of 30 rows with 6. With dropout: one random number drawn too many would
    change the weights."""
    job = _planned(make_job(tiny, micro_batch=micro_batch, accumulation=12 // micro_batch, steps=5, dropout=0.3))
    return msgspec.structs.replace(job, smaller=smaller, rehearse=rehearse)


@pytest.fixture(scope="module")
def whole(cpu: CpuBackend, tiny: Path, rows: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(cpu, _job(tiny), rows, tmp_path_factory.mktemp("whole"), save_at=[1])


@pytest.mark.parametrize(
    ("short_at", "smaller"),
    [
        ((("forward", 2, 1),), (4,)),
        ((("backward", 2, 2),), (4,)),  # 4 does not divide 6: the parts lie across the old ones
        ((("backward", 2, 2), ("forward", 2, 4)), (4, 1)),  # its second part does not fit either
    ],
    ids=["in forward", "in backward", "twice"],
)
def test_a_step_done_anew_in_smaller_parts_is_that_of_a_fresh_process_with_them(
    cpu: CpuBackend,
    tiny: Path,
    rows: Prepared,
    whole: Run,
    tmp_path: Path,
    short_at: Shortages,
    smaller: tuple[int, ...],
) -> None:
    short = run(cpu, _job(tiny, smaller=smaller), rows, tmp_path / "short", short_at=short_at)
    assert short.session.sizes == [(2, size) for size in smaller]
    assert short.orders() == whole.orders()
    fresh = run(cpu, resumed(_job(tiny, smaller[-1]), whole.session.checkpoint(1)), rows, tmp_path / "fresh")
    assert short.done.digest == fresh.done.digest
    later = {step: loss for step, loss in short.losses().items() if step > 1}
    assert later == pytest.approx(fresh.losses(), rel=1e-6)


def test_the_longest_samples_tried_first_leave_no_trace(
    cpu: CpuBackend, tiny: Path, rows: Prepared, whole: Run, tmp_path: Path
) -> None:
    tried = run(cpu, _job(tiny, rehearse=0), rows, tmp_path)
    assert tried.session.rehearsals == [max(rows.length(index) for index in range(len(rows)))]
    assert (tried.done.digest, tried.losses()) == (whole.done.digest, whole.losses())


def test_a_batch_that_the_longest_samples_do_not_fit_in_is_smaller_from_the_first_step_on(
    cpu: CpuBackend, tiny: Path, rows: Prepared, tmp_path: Path
) -> None:
    job = _job(tiny, smaller=(4,), rehearse=0)
    short = run(cpu, job, rows, tmp_path / "short", short_at=[("backward", 0, 1)])
    assert short.session.sizes == [(0, 4)]
    fresh = run(cpu, _job(tiny, 4), rows, tmp_path / "fresh")
    assert (short.done.digest, short.losses()) == (fresh.done.digest, fresh.losses())


@pytest.mark.parametrize(
    ("place", "smaller"), [("optimizer", (4,)), ("forward", ())], ids=["in the optimizer", "not allowed"]
)
def test_what_cannot_be_done_anew_is_a_fault(
    cpu: CpuBackend, tiny: Path, rows: Prepared, tmp_path: Path, place: str, smaller: tuple[int, ...]
) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        run(cpu, _job(tiny, smaller=smaller), rows, tmp_path, short_at=[(place, 1, 1)])


@pytest.mark.parametrize("method", ["orpo", "kto"])
def test_preferences_are_done_anew_as_a_fresh_process_would(
    cpu: CpuBackend, tiny: Path, tmp_path: Path, method: str
) -> None:
    data = make_preferences(method, tmp_path / "data")
    job = _planned(preference_job(tiny, method))
    short = msgspec.structs.replace(job, smaller=(2,), rehearse=0)
    found = run(cpu, short, data, tmp_path / "short", short_at=[("backward", 2, 1)], save_at=[1])
    assert found.session.sizes == [(2, 2)]
    half = msgspec.structs.replace(job, micro_batch=2, accumulation=2)
    fresh = run(cpu, resumed(half, found.session.checkpoint(1)), data, tmp_path / "fresh")
    assert found.done.digest == fresh.done.digest
    assert [step.extra for step in found.session.progress[1:]] == [step.extra for step in fresh.session.progress]


class Tight(KeepingSession):
    """Scores after every step; the first time there is no memory at the first sign of progress."""

    asked: list[int]

    def step_done(self, progress: Progress, score: Score | None = None) -> Directive:
        asked: list[int] = []

        def go_on(done: int, total: int) -> bool:
            asked.append(done)
            if progress.step == 1 and len(asked) == 1:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return True

        assert self.held_out is not None
        assert score is not None
        found = score(self.held_out, go_on)
        assert found is not None
        self.scores[progress.step] = found
        self.asked.append(len(asked))
        return super().step_done(progress)


@pytest.mark.parametrize("method", ["sft", "orpo", "kto"])
def test_a_shortage_in_an_evaluation_makes_the_evaluations_smaller_and_nothing_else(
    cpu: CpuBackend, tiny: Path, tmp_path: Path, rows: Prepared, method: str
) -> None:
    data = rows if method == "sft" else make_preferences(method, tmp_path / "data")
    apart = make_data(tmp_path / "apart", rows=8, vocabulary=390) if method == "sft" else data
    job = make_job(tiny, steps=2) if method == "sft" else preference_job(tiny, method)
    job = msgspec.structs.replace(
        job, spec=msgspec.structs.replace(job.spec, train=msgspec.structs.replace(job.spec.train, steps=2))
    )
    plain = KeepingSession(job, tmp_path / "plain", data, held_out=apart, score_at=(1, 2))
    tight = Tight(job, tmp_path / "tight", data, held_out=apart)
    tight.asked = []
    first, second = cpu.train(plain, data), cpu.train(tight, data)
    assert first is not None
    assert second is not None
    assert first.digest == second.digest
    assert tight.sizes == []
    assert [_of(tight.scores[step]) for step in (1, 2)] == [
        pytest.approx(_of(plain.scores[step]), rel=1e-6) for step in (1, 2)
    ]
    assert tight.asked[1] > 3  # the second evaluation did not try the size again that did not fit


def _of(score: HeldOut) -> tuple[float, float, float]:
    return score.loss, score.rows, score.tokens
