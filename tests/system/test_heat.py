"""An overheating card, played behind the real pynvml: warned of, paused for, resumed after, and given up when it must be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from backpropagate import userstate
from backpropagate.events import AttemptStarted, FaultSeen, Heat, Noticed
from backpropagate.outcome import Outcome
from tests.conftest import Oracle
from tests.system.supervised import run_here, toy_spec

pytestmark = pytest.mark.slow

COOL = [60] * 8  # while the child starts
SLOW = "toy?step_seconds=0.05"  # so that the series plays while it trains


def series(folder: Path, celsius: list[int | None], **card: object) -> Path:
    script = folder / "card.json"
    script.write_text(json.dumps({"celsius": celsius, "interval": 0.1, **card}))
    return script


def test_a_hot_card_is_rested_and_the_run_goes_on_halved_with_the_same_samples(
    oracle: Oracle, undisturbed: Outcome
) -> None:
    script = series(oracle.home, [*COOL, 82, 85, 91, 91, 85, 70])
    outcome, story = run_here(toy_spec(oracle.output(), toy=SLOW), gpu_script=script)
    assert (outcome.status, outcome.order, outcome.recoveries) == ("completed", undisturbed.order, 1)
    assert [heat.level for heat in story.of(Heat)][:3] == ["warning", "pause", "cool"]
    first, second = story.of(AttemptStarted)
    assert second.micro_batch * 2 == first.micro_batch
    assert second.resume_step > 0


def test_a_card_near_its_end_is_saved_by_killing_at_once(oracle: Oracle, undisturbed: Outcome) -> None:
    script = series(oracle.home, [*COOL, 96, 96, 70])
    outcome, story = run_here(toy_spec(oracle.output(), toy=SLOW), gpu_script=script)
    assert (outcome.status, outcome.order) == ("completed", undisturbed.order)
    assert "kill" in [heat.level for heat in story.of(Heat)]
    assert [fault.kind for fault in story.of(FaultSeen)] == ["overheat"]


def test_the_cards_own_limits_come_before_ours(oracle: Oracle) -> None:
    script = series(oracle.home, [*COOL, 86, 60], slowdown=85, shutdown=90)
    outcome, story = run_here(toy_spec(oracle.output(), toy=SLOW), gpu_script=script)
    assert outcome.status == "completed"
    assert [heat.celsius for heat in story.of(Heat) if heat.level == "pause"] == [86]


def test_a_sensor_that_falls_silent_costs_one_warning(oracle: Oracle, undisturbed: Outcome) -> None:
    script = series(oracle.home, [60, 60, None])
    outcome, story = run_here(toy_spec(oracle.output(), toy=SLOW), gpu_script=script)
    assert (outcome.status, outcome.order, outcome.recoveries) == ("completed", undisturbed.order, 0)
    warnings = [notice for notice in story.of(Noticed) if "sensors cannot be read" in notice.text]
    assert len(warnings) == 1


def test_what_fitted_on_a_card_is_remembered_for_the_next_run(oracle: Oracle) -> None:
    script = series(oracle.home, [60], memory_total=24_000)
    _, first = run_here(toy_spec(oracle.output(), "oom:7"), gpu_script=script)
    _, second = run_here(toy_spec(oracle.output()), gpu_script=script)
    assert [attempt.micro_batch for attempt in first.of(AttemptStarted)] == [4, 2]
    assert [attempt.micro_batch for attempt in second.of(AttemptStarted)] == [2]
    assert userstate.fitted(userstate.fit_key("Scripted GPU", "toy", "sft", 2048)) == 2


def test_a_card_that_another_run_holds_is_busy(oracle: Oracle) -> None:
    from backpropagate import locks

    script = series(oracle.home, [60])
    with locks.hold(locks.gpu_lock("GPU-00000000-scripted"), "another-run", "the GPU"):
        outcome, story = run_here(toy_spec(oracle.output()), gpu_script=script)
    assert (outcome.status, outcome.exit_code, outcome.code) == ("interrupted", 75, "STATE_BUSY")
    assert "another-run" in outcome.message
    assert not story.of(AttemptStarted)
