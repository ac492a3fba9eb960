"""Evaluation during training on real children: kills, stops and full disks change neither a score nor what follows from it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from backpropagate_protocol.durable import verify_dir
from backpropagate_protocol.jobs import TrainJob
from backpropagate_protocol.messages import (
    CheckpointFailed,
    CheckpointSaved,
    DataReady,
    Done,
    Evaluated,
    Fault,
    FaultKind,
    Notice,
    Phase,
    PhaseChanged,
    Progress,
    Started,
    Stop,
    Stopped,
    TrainResult,
)
from backpropagate_protocol.rundir import checkpoint_step
from backpropagate_protocol.spec import PlannedFault
from tests.runner.child import Child, run_of, runner
from tests.runner.overfitting import BEST, EVERY, STEPS, evaluated_job, next_attempt

DUE = list(range(EVERY, STEPS + 1, EVERY))


@dataclass(frozen=True)
class Told:
    """What one child said, and its last word."""

    child: Child
    last: Done | Fault | Stopped | None

    @property
    def result(self) -> TrainResult:
        assert isinstance(self.last, Done), (self.last, self.child.log.read_text())
        assert isinstance(self.last.result, TrainResult)
        return self.last.result

    @property
    def scores(self) -> dict[int, tuple[float, bool]]:
        return {said.step: (said.loss, said.best) for said in self.child.of(Evaluated)}

    @property
    def notices(self) -> list[str]:
        return [said.text for said in self.child.of(Notice)]


def attempt(job: TrainJob, folder: Path) -> Told:
    with runner(job, folder) as child:
        return Told(child, child.finish())


def stopped_amid(job: TrainJob, folder: Path, step: int) -> Told:
    """A Stop comes while the rows are scored after `step`, which waits for it."""
    with runner(job, folder) as child:
        while child.wait_for(PhaseChanged).phase is not Phase.EVALUATE or child.of(Progress)[-1].step != step:
            pass
        child.send(Stop("test"))
        return Told(child, child.finish())


def ready(told: Told) -> DataReady:
    [found] = told.child.of(DataReady)
    return found


def weights(job: TrainJob, step: int) -> bytes:
    return (run_of(job).checkpoint(step) / "state.json").read_bytes()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """Scored to its last step, with all of its choices off."""
    folder = tmp_path_factory.mktemp("plain")
    return attempt(evaluated_job(folder), folder)


@pytest.fixture(scope="module")
def choosing(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """Ends early, and keeps the best."""
    folder = tmp_path_factory.mktemp("choosing")
    return attempt(evaluated_job(folder, keep_best=True, early_stopping=2), folder)


def test_the_rows_that_are_held_out_are_scored_when_it_is_due_and_tell_which_was_best(plain: Told) -> None:
    assert (ready(plain).rows, ready(plain).held_out_rows) == (30, 10)
    assert list(plain.scores) == DUE
    assert [step for step, (_, best) in plain.scores.items() if best] == [3, 6, 9, BEST]
    assert all(said.rows == 10 and "accuracy" in said.extra for said in plain.child.of(Evaluated))
    assert (plain.result.step, plain.result.best_step, plain.result.stopped_early) == (STEPS, 0, False)


def test_the_phase_says_that_rows_are_scored_and_then_that_it_trains(plain: Told) -> None:
    phases = [said.phase for said in plain.child.of(PhaseChanged)]
    assert phases.count(Phase.EVALUATE) >= len(DUE)
    assert phases[phases.index(Phase.EVALUATE) :][-2:] == [Phase.TRAIN, Phase.FINISH]


def test_a_run_that_is_scored_trains_as_one_that_is_not(plain: Told, tmp_path: Path) -> None:
    job = evaluated_job(tmp_path, eval_steps=1000)
    once = attempt(job, tmp_path)
    assert list(once.scores) == [STEPS]
    assert (once.result.digest, once.result.order) == (plain.result.digest, plain.result.order)


def test_so_many_without_a_better_one_end_the_training_and_the_best_is_the_result(choosing: Told, plain: Told) -> None:
    assert choosing.scores == {step: plain.scores[step] for step in DUE if step <= BEST + 2 * EVERY}
    assert (choosing.result.step, choosing.result.best_step, choosing.result.stopped_early) == (18, BEST, True)
    assert [text for text in choosing.notices if text.startswith("stopped early at step 18 of 24: 2 scores in a row")]
    result = verify_dir(Path(choosing.result.adapter))
    assert (result.step, result.total_steps, result.best_step) == (18, STEPS, BEST)


def test_every_new_best_is_saved_where_it_is_to_be_kept(choosing: Told, plain: Told) -> None:
    assert [said.step for said in choosing.child.of(CheckpointSaved)] == [3, 6, 8, 9, 12, 16, 18]
    assert [said.step for said in plain.child.of(CheckpointSaved)] == [8, 16, 24]


# Before a score, amid one, after the one that is best, amid the one that ends it; and where each has to go on from.
@pytest.mark.parametrize(
    ("fault", "at", "resumed_from"),
    [
        ("sigkill", 6, 3),
        ("sigkill_in_evaluation", 9, 8),
        ("sigkill_in_evaluation", 12, 9),
        ("sigkill", 13, 12),
        ("sigkill_in_evaluation", 18, 16),
    ],
)
def test_a_death_changes_no_score_no_count_and_no_result(
    choosing: Told, tmp_path: Path, fault: str, at: int, resumed_from: int
) -> None:
    job = evaluated_job(tmp_path, keep_best=True, early_stopping=2, faults=(PlannedFault(fault, at),))
    first = attempt(job, tmp_path)
    assert first.last is None
    second = attempt(next_attempt(job, ready(first), step=resumed_from), tmp_path)
    assert {**first.scores, **second.scores} == choosing.scores
    assert second.result == msgspec.structs.replace(choosing.result, adapter=second.result.adapter)


def test_a_halved_batch_chooses_the_same(choosing: Told, tmp_path: Path) -> None:
    job = evaluated_job(tmp_path, keep_best=True, early_stopping=2, faults=(PlannedFault("oom_in_evaluation", 12),))
    first = attempt(job, tmp_path)
    assert isinstance(first.last, Fault)
    assert (first.last.kind, first.last.phase, first.last.step) == (FaultKind.OOM, Phase.EVALUATE, 12)
    second = attempt(next_attempt(job, ready(first), step=9, micro_batch=2), tmp_path)
    assert {step: best for step, (_, best) in {**first.scores, **second.scores}.items()} == {
        step: best for step, (_, best) in choosing.scores.items()
    }
    assert (second.result.order, second.result.best_step) == (choosing.result.order, BEST)


def test_a_stop_leaves_the_scoring_saves_and_the_resume_makes_up_for_it_before_its_first_step(
    choosing: Told, tmp_path: Path
) -> None:
    job = evaluated_job(tmp_path, keep_best=True, early_stopping=2, faults=(PlannedFault("hold_in_evaluation", 12),))
    first = stopped_amid(job, tmp_path, 12)
    assert first.last == Stopped(12, saved=True)
    assert list(first.scores) == [3, 6, 9]
    assert verify_dir(run_of(job).checkpoint(12)).standing == verify_dir(run_of(job).checkpoint(9)).standing
    second = attempt(next_attempt(job, ready(first), step=12), tmp_path)
    kinds = [type(said) for said in second.child.said if isinstance(said, Evaluated | Started | Progress)]
    assert kinds[:3] == [Evaluated, Started, Progress]
    assert {**first.scores, **second.scores} == choosing.scores
    assert second.result.digest == choosing.result.digest


def test_a_stop_amid_the_last_scoring_is_resumed_without_another_step(plain: Told, tmp_path: Path) -> None:
    job = evaluated_job(tmp_path, keep_best=True, faults=(PlannedFault("hold_in_evaluation", STEPS),))
    first = stopped_amid(job, tmp_path, STEPS)
    assert first.last == Stopped(STEPS, saved=True)
    second = attempt(next_attempt(job, ready(first), step=STEPS), tmp_path)
    assert second.scores == {STEPS: plain.scores[STEPS]}
    assert second.child.of(Progress) == []
    assert (second.result.step, second.result.best_step) == (STEPS, BEST)


def test_a_run_that_had_enough_and_died_before_its_result_trains_no_further(choosing: Told, tmp_path: Path) -> None:
    job = evaluated_job(tmp_path, keep_best=True, early_stopping=2)
    first = attempt(job, tmp_path)
    shutil.rmtree(run_of(job).adapter)
    second = attempt(next_attempt(job, ready(first), step=18), tmp_path)
    assert second.child.of(Progress) == []
    assert second.result == first.result


def test_the_best_checkpoint_outlives_all_newer_ones(tmp_path: Path, choosing: Told) -> None:
    """With one to be kept: the newest, and the best by then."""
    job = evaluated_job(tmp_path, keep_best=True, keep=1)
    told = attempt(job, tmp_path)
    assert told.result.best_step == BEST
    assert told.result.digest == choosing.result.digest
    there = sorted(step for path in run_of(job).checkpoints.iterdir() if (step := checkpoint_step(path.name)))
    assert there == [BEST, STEPS]


def test_what_the_disk_could_not_take_is_not_the_best_any_more(tmp_path: Path) -> None:
    job = evaluated_job(tmp_path, keep_best=True, faults=(PlannedFault("disk_full", BEST),))
    told = attempt(job, tmp_path)
    assert [said.step for said in told.child.of(CheckpointFailed)] == [BEST]
    assert told.result.best_step == 15  # better than step 9, which was the best that is kept
    assert told.scores[15][1]
    assert weights(job, 15)


def test_a_best_checkpoint_that_was_damaged_is_told_and_the_newest_weights_are_the_result(
    tmp_path: Path, plain: Told
) -> None:
    job = evaluated_job(tmp_path, keep_best=True, faults=(PlannedFault("bitflip_save", BEST),))
    told = attempt(job, tmp_path)
    assert any(f"the checkpoint of step {BEST}, which had the best held-out loss" in text for text in told.notices)
    assert (told.result.best_step, told.result.digest) == (0, plain.result.digest)


def test_a_best_checkpoint_that_somebody_removed_is_told_at_the_resume(tmp_path: Path) -> None:
    job = evaluated_job(tmp_path, keep_best=True, faults=(PlannedFault("sigkill", 17),))
    first = attempt(job, tmp_path)
    shutil.rmtree(run_of(job).checkpoint(BEST))
    second = attempt(next_attempt(job, ready(first), step=16), tmp_path)
    assert any("is gone" in text for text in second.notices)
    assert second.result.best_step == 18  # the best of those that followed


def test_held_out_rows_are_neither_read_nor_tokenised_again_and_may_be_made_again(tmp_path: Path, plain: Told) -> None:
    job = evaluated_job(tmp_path, faults=(PlannedFault("sigkill", 10, attempt=0),))
    first = attempt(job, tmp_path)
    source = Path(job.spec.data.source)
    rows = source.read_bytes()
    source.unlink()
    second = attempt(next_attempt(job, ready(first), step=8), tmp_path)
    assert (second.child.of(DataReady), list(second.scores)) == ([], [9])
    source.write_bytes(rows)
    shutil.rmtree(ready(first).held_out_path)
    whole = msgspec.structs.replace(job, spec=msgspec.structs.replace(job.spec, faults=()))
    third = attempt(next_attempt(whole, ready(first), step=8), tmp_path)
    assert (ready(third).held_out_digest, third.result.digest) == (ready(first).held_out_digest, plain.result.digest)


def test_a_file_with_too_few_rows_to_hold_any_out_is_refused(tmp_path: Path) -> None:
    job = evaluated_job(tmp_path)
    data = msgspec.structs.replace(job.spec.data, samples=3)
    told = attempt(msgspec.structs.replace(job, spec=msgspec.structs.replace(job.spec, data=data)), tmp_path)
    assert isinstance(told.last, Fault)
    assert told.last.kind is FaultKind.USER
    assert "held out" in told.last.message
