"""Deadlines: what a run's own steps teach, and what they do not."""

from __future__ import annotations

from backpropagate.judge.deadlines import StepTimes, limit
from backpropagate_protocol.messages import Phase
from backpropagate_protocol.spec import SafetySpec


def test_a_slow_step_moves_the_deadline_at_once() -> None:
    steps = StepTimes()
    for _ in range(10):
        steps.add(1.0)
    steps.add(20.0)
    assert limit(Phase.TRAIN, SafetySpec(), steps) == 100.0


def test_fast_steps_have_the_floor_as_their_deadline() -> None:
    steps = StepTimes()
    steps.add(0.01)
    assert limit(Phase.TRAIN, SafetySpec(hang_floor=30.0), steps) == 30.0


def test_one_outlier_among_many_is_forgotten() -> None:
    steps = StepTimes()
    steps.add(500.0)
    for _ in range(600):
        steps.add(10.0)
    assert steps.p99 == 10.0


def test_the_first_step_bounds_the_second_and_is_then_forgotten() -> None:
    steps = StepTimes()
    assert limit(Phase.TRAIN, SafetySpec(first_step_deadline=900.0), steps) == 900.0
    steps.first(60.0)
    assert limit(Phase.TRAIN, SafetySpec(), steps) == 300.0
    steps.add(20.0)
    steps.first(70.0)
    assert limit(Phase.TRAIN, SafetySpec(), steps) == 100.0


def test_scoring_amid_a_training_has_the_deadline_of_a_first_step_and_a_stage_of_its_own_that_of_loading() -> None:
    safety, steps = SafetySpec(first_step_deadline=900.0, load_deadline=3600.0), StepTimes()
    assert limit(Phase.EVALUATE, safety, steps) == 3600.0
    steps.first(1.0)
    assert limit(Phase.EVALUATE, safety, steps) == 900.0


def test_every_phase_has_a_deadline() -> None:
    assert all(limit(phase, SafetySpec(), StepTimes()) > 0 for phase in Phase)


def test_a_save_has_minutes_until_it_is_known_what_saves_take_here() -> None:
    steps = StepTimes()
    assert limit(Phase.CHECKPOINT, SafetySpec(), steps) == 900.0
    steps.saved(0.5)
    assert limit(Phase.CHECKPOINT, SafetySpec(hang_floor=30.0), steps) == 120.0
    steps.saved(12.0)
    assert limit(Phase.CHECKPOINT, SafetySpec(hang_floor=30.0), steps) == 240.0
    steps.saved(100.0)
    assert limit(Phase.CHECKPOINT, SafetySpec(hang_floor=30.0), steps) == 900.0
