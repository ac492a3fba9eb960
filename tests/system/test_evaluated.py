"""Runs that are scored while they train, under a real supervisor: whatever comes between, the same scores and the same choice."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import msgspec
import pytest

from backpropagate.api.callbacks import Calls, TrainingCallback
from backpropagate.api.result import Summary, TrainingRun
from backpropagate.events import AttemptStarted, DataPrepared, Evaluation, Event, FaultSeen, PhaseEntered, Recovering
from backpropagate.keep import history, journal
from backpropagate.outcome import Outcome
from backpropagate_protocol.rundir import OutputDir, RunDir
from backpropagate_protocol.spec import RunSpec
from tests.conftest import Oracle
from tests.runner.overfitting import BEST, evaluated, write_rows
from tests.system.real import assert_same_samples, real_spec, trained
from tests.system.supervised import Story, resume_here, run_here, supervisor, toy_spec

pytestmark = pytest.mark.slow


def choosing(output: OutputDir, *faults: str, **safety: object) -> RunSpec:
    """Held-out loss falls and rises again: ends early at step 18 of 24, with the weights of step 12."""
    write_rows(output.path.parent / "rows.jsonl")
    spec = evaluated(toy_spec(output, *faults, steps=24), keep_best=True, early_stopping=2)
    wishes = {"save_steps": 8, "keep_checkpoints": 1, **safety}
    return msgspec.structs.replace(spec, safety=msgspec.structs.replace(spec.safety, **wishes))


def summary(run_dir: RunDir) -> TrainingRun:
    """What its journal comes to."""
    told = Summary(run_dir)
    for event in journal.read(run_dir.events):
        told.event(event)
    return told.run()


def chosen(outcome: Outcome) -> tuple[object, ...]:
    """All that must not hang on what came between."""
    return (outcome.status, outcome.step, outcome.order, outcome.final_loss, outcome.best_step, outcome.stopped_early)


def scores(events: list[Event]) -> dict[int, float]:
    return {event.step: event.loss for event in events if isinstance(event, Evaluation)}


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Story, RunDir]:
    spec = choosing(OutputDir(tmp_path_factory.mktemp("calm") / "out"))
    outcome, story = run_here(spec)
    return outcome, story, OutputDir(Path(spec.output)).run(spec.run_id)


def test_the_outcome_the_row_and_the_result_tell_what_was_chosen(calm: tuple[Outcome, Story, RunDir]) -> None:
    outcome, story, run_dir = calm
    assert chosen(outcome)[-2:] == (BEST, True)
    assert (outcome.status, outcome.step, outcome.total_steps) == ("completed", 18, 24)
    [data] = story.of(DataPrepared)
    assert (data.rows, data.held_out_rows) == (30, 10)
    row, run = history.show(run_dir), summary(run_dir)
    assert (
        row.eval_history
        == list(scores(story.events).items())
        == list(zip(run.eval_steps, run.eval_losses, strict=True))
    )
    assert (row.best_step, row.best_loss, row.stopped_early) == (BEST, scores(story.events)[BEST], True)
    assert (run.best_step, run.best_loss, run.stopped_early, run.completed) == (BEST, row.best_loss, True, True)
    called: list[tuple[int, float]] = []
    calls = Calls(TrainingCallback(on_evaluate=lambda step, loss: called.append((step, loss))), None)
    for event in story.events:
        calls.event(event)
    assert called == row.eval_history
    assert [p.phase for p in journal.read(run_dir.events) if isinstance(p, PhaseEntered)].count("evaluate") == 0


def test_deaths_and_hangs_amid_the_scoring_change_nothing(oracle: Oracle, calm: tuple[Outcome, Story, RunDir]) -> None:
    """A hang is seen by the deadline of a scoring, which is that of a first step."""
    faults = ("sigkill_in_evaluation:6", "hang_in_evaluation:12:2", "sigkill:14:3", "sigkill_in_evaluation:18:4")
    spec = choosing(oracle.output(), *faults, first_step_deadline=2.0)
    outcome, story = run_here(spec)
    assert [fault.kind for fault in story.of(FaultSeen)] == ["died", "hang", "died", "died"]
    assert [recovering.resume_step for recovering in story.of(Recovering)] == [3, 9, 12, 16]
    assert (chosen(outcome), scores(story.events)) == (chosen(calm[0]), scores(calm[1].events))
    assert history.show(oracle.output().run(spec.run_id)).eval_history == history.show(calm[2]).eval_history


def test_a_want_of_memory_amid_the_scoring_costs_a_child_and_no_batch_and_the_same_is_chosen(
    oracle: Oracle, calm: tuple[Outcome, Story, RunDir]
) -> None:
    outcome, story = run_here(choosing(oracle.output(), "oom_in_evaluation:12"))
    assert [attempt.micro_batch for attempt in story.of(AttemptStarted)] == [8, 8]
    assert (outcome.order, outcome.best_step, outcome.stopped_early) == (calm[0].order, BEST, True)
    assert scores(story.events) == pytest.approx(scores(calm[1].events))


@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
def test_a_run_that_is_stopped_amid_the_scoring_goes_on_from_there(
    oracle: Oracle, calm: tuple[Outcome, Story, RunDir]
) -> None:
    with supervisor(choosing(oracle.output(), "hold_in_evaluation:15")) as run:
        run.until_saved(12)
        run.signal(signal.SIGTERM)
        assert run.wait() == 75
        assert run.ended().step == 15
    outcome, _ = resume_here(run.run_dir)
    assert chosen(outcome) == chosen(calm[0])
    assert summary(run.run_dir).eval_losses == list(scores(calm[1].events).values())


# --- real training --------------------------------------------------------------------------------------------------


def real(output: OutputDir, *faults: str) -> RunSpec:
    """Every fifth row held out, scored after the fourth and the eighth step, which a wild learning rate makes the worse one."""
    spec = real_spec(output, *faults, save_steps=100)
    wild = {"steps": 8, "learning_rate": 1.0, "scheduler": "constant", "eval_steps": 4, "keep_best": True}
    return msgspec.structs.replace(
        spec,
        data=msgspec.structs.replace(spec.data, holdout=5),
        train=msgspec.structs.replace(spec.train, **wild),
    )


def test_a_real_run_that_is_halved_after_its_best_step_has_the_same_best_weights_to_the_bit(
    oracle: Oracle, one_thread: None
) -> None:
    calm = real(oracle.output("calm"))
    untroubled, told = run_here(calm)
    assert [(event.step, event.best) for event in told.of(Evaluation)] == [(4, True), (8, False)]
    spec = real(oracle.output(), "oom:6")
    outcome, story = run_here(spec)
    assert [recovering.resume_step for recovering in story.of(Recovering)] == [4]
    assert scores(story.events)[4] == scores(told.events)[4]
    assert (outcome.step, outcome.best_step) == (8, 4)
    run, undisturbed = trained(spec, outcome), trained(calm, untroubled)
    assert_same_samples(run, undisturbed)
    assert run.weights == undisturbed.weights
