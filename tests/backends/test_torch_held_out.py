"""Held-out rows scored amid a real TRL run: the loss that anyone would compute, and a training that takes no notice."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from backpropagate_backends.base import ADAPTER_WEIGHTS, Directive, Score
from backpropagate_backends.cpu import CpuBackend
from backpropagate_backends.torch_whole import WHOLE
from backpropagate_protocol.jobs import Candidate, EvaluateJob, TrainJob
from backpropagate_protocol.messages import Phase, Progress
from backpropagate_protocol.prepared import Prepared
from backpropagate_protocol.spec import ModelSpec
from tests.backends.torch_runs import FOREIGN_WARNINGS, Run, resumed
from tests.backends.torch_session import KeepingSession, make_data, make_job

pytestmark = [pytest.mark.slow, FOREIGN_WARNINGS]

STEPS = 6


class Silent:
    """A stage that nobody listens to."""

    def advance(self, done: int = 0, total: int = 0, detail: str = "") -> None: ...

    def notice(self, text: str, level: str = "info") -> None: ...


class Leaving(KeepingSession):
    """Begins to score after every step, and leaves at the first progress; `asked` keeps the signs."""

    asked: list[tuple[int, int]]

    def step_done(self, progress: Progress, score: Score | None = None) -> Directive:
        def go_on(done: int, total: int) -> bool:
            self.asked.append((done, total))
            return done == 0

        assert self.held_out is not None
        assert score is not None
        assert score(self.held_out, go_on) is None
        return super().step_done(progress)


def job(tiny: Path, dtype: str = "auto") -> TrainJob:
    """With dropout, so that one random number drawn too many would change the weights."""
    return make_job(tiny, steps=STEPS, dropout=0.0 if dtype != "auto" else 0.3, dtype=dtype)


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return make_data(tmp_path_factory.mktemp("apart") / "data", rows=7, vocabulary=390)


@pytest.fixture(scope="module")
def scored(
    cpu: CpuBackend, tiny: Path, rows: Prepared, apart: Prepared, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """Scored after every step but the first, and saved after two of them."""
    folder = tmp_path_factory.mktemp("scored")
    session = KeepingSession(job(tiny), folder, rows, save_at=(3, 6), held_out=apart, score_at=range(2, STEPS + 1))
    return Run(session, cpu.train(session, rows))


def test_a_training_that_is_scored_meanwhile_is_the_same_to_the_bit(
    cpu: CpuBackend, tiny: Path, rows: Prepared, scored: Run, tmp_path: Path
) -> None:
    session = KeepingSession(job(tiny), tmp_path, rows)
    plain = Run(session, cpu.train(session, rows))
    assert plain.done.digest == scored.done.digest
    assert (plain.losses(), plain.orders()) == (scored.losses(), scored.orders())


def test_a_score_is_that_of_the_checkpoint_of_its_step(
    cpu: CpuBackend, tiny: Path, apart: Prepared, scored: Run
) -> None:
    candidates = tuple(Candidate(str(step), str(scored.session.checkpoint(step))) for step in (3, 6))
    wish = EvaluateJob(
        model=ModelSpec(name="tiny", path=str(tiny)), candidates=candidates, tasks=(), cache="", backend="cpu"
    )
    for candidate in cpu.evaluate(wish, [apart], Silent()):
        found = scored.session.scores[int(candidate.candidate)]
        assert found.loss == pytest.approx(candidate.loss, abs=1e-5)
        assert (found.rows, found.tokens) == (len(apart), candidate.tokens)
        assert found.extra == {"accuracy": candidate.accuracy}


def test_an_evaluation_that_is_owed_is_made_up_for_with_the_same_score_and_the_rest_is_as_if_nothing_had_been(
    cpu: CpuBackend, tiny: Path, rows: Prepared, apart: Prepared, scored: Run, tmp_path: Path
) -> None:
    again = resumed(job(tiny), scored.session.checkpoint(3))
    session = KeepingSession(again, tmp_path, rows, held_out=apart, score_at=(3, 5))
    result = cpu.train(session, rows)
    assert session.scores == {step: scored.session.scores[step] for step in (3, 5)}
    assert result is not None
    assert result.digest == scored.done.digest


def test_one_that_is_owed_after_the_last_step_is_made_up_for_without_another_step(
    cpu: CpuBackend, tiny: Path, rows: Prepared, apart: Prepared, scored: Run, tmp_path: Path
) -> None:
    again = resumed(job(tiny), scored.session.checkpoint(6))
    session = KeepingSession(again, tmp_path, rows, held_out=apart, score_at=(6,))
    result = cpu.train(session, rows)
    assert session.scores == {6: scored.session.scores[6]}
    assert (session.progress, result and result.digest) == ([], scored.done.digest)


def test_in_mixed_precision_a_score_before_the_first_step_is_that_of_the_training(
    cpu: CpuBackend, tiny: Path, rows: Prepared, apart: Prepared, tmp_path: Path
) -> None:
    first = KeepingSession(job(tiny, "bf16"), tmp_path / "a", rows, save_at=(3,), held_out=apart, score_at=(3,))
    cpu.train(first, rows)
    again = resumed(job(tiny, "bf16"), first.checkpoint(3))
    second = KeepingSession(again, tmp_path / "b", rows, held_out=apart, score_at=(3,))
    cpu.train(second, rows)
    assert second.scores == first.scores


def test_the_result_of_a_run_that_keeps_the_best_is_the_best_checkpoint_without_its_state(
    cpu: CpuBackend, tiny: Path, rows: Prepared, apart: Prepared, scored: Run, tmp_path: Path
) -> None:
    session = KeepingSession(job(tiny), tmp_path, rows, save_at=(3,), held_out=apart, score_at=(3,), best_step=3)
    result = cpu.train(session, rows)
    assert result is not None
    assert (result.step, result.order) == (STEPS, scored.done.order)
    folder = Path(result.adapter)
    kept = (scored.session.checkpoint(3) / ADAPTER_WEIGHTS).read_bytes()
    assert (folder / ADAPTER_WEIGHTS).read_bytes() == kept
    plain = {path.name for path in Path(scored.done.adapter).iterdir()}
    assert {path.name for path in folder.iterdir()} == plain


def test_a_run_that_is_told_to_finish_writes_its_result_and_does_no_further_step(
    cpu: CpuBackend, tiny: Path, rows: Prepared, scored: Run, tmp_path: Path
) -> None:
    session = KeepingSession(job(tiny), tmp_path, rows, save_at=(3,), finish_at=3)
    result = cpu.train(session, rows)
    assert result is not None
    assert (result.step, [progress.step for progress in session.progress]) == (3, [1, 2, 3])
    assert (session.checkpoint(3) / ADAPTER_WEIGHTS).read_bytes() == (
        Path(result.adapter) / ADAPTER_WEIGHTS
    ).read_bytes()
    assert session.phases[-1] is Phase.FINISH


def test_a_scoring_that_is_left_says_nothing_and_the_model_trains_on(
    cpu: CpuBackend, tiny: Path, rows: Prepared, apart: Prepared, scored: Run, tmp_path: Path
) -> None:
    session = Leaving(job(tiny), tmp_path, rows, held_out=apart)
    session.asked = []
    result = cpu.train(session, rows)
    assert session.asked == [(0, 7), (4, 7)] * STEPS
    assert result is not None
    assert result.digest == scored.done.digest


def test_of_a_fully_trained_model_the_best_is_its_whole_checkpoint(
    cpu: CpuBackend, tiny: Path, rows: Prepared, apart: Prepared, tmp_path: Path
) -> None:
    plain = make_job(tiny, steps=4)
    train = msgspec.structs.replace(plain.spec.train, mode="full")
    whole = msgspec.structs.replace(plain, spec=msgspec.structs.replace(plain.spec, train=train))
    session = KeepingSession(whole, tmp_path, rows, save_at=(2, 4), held_out=apart, score_at=(2,), best_step=2)
    result = cpu.train(session, rows)
    assert result is not None
    folder = Path(result.adapter)
    assert (folder / WHOLE).read_bytes() == (session.checkpoint(2) / WHOLE).read_bytes()
    assert (folder / WHOLE).read_bytes() != (session.checkpoint(4) / WHOLE).read_bytes()
    assert not [path.name for path in folder.iterdir() if path.suffix in (".pt", ".pth")]
    owing = KeepingSession(
        resumed(whole, session.checkpoint(2)), tmp_path / "again", rows, held_out=apart, score_at=(2,)
    )
    cpu.train(owing, rows)
    assert owing.scores == session.scores
