"""A card that falls ill under a run, played behind the real pynvml: what is hopeless is not tried, what is not goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from backpropagate.events import AttemptStarted, CardTrouble, FaultSeen, Noticed, Step
from backpropagate.keep import history
from backpropagate.outcome import Outcome
from tests.conftest import Oracle
from tests.system.supervised import At, run_here, toy_spec

pytestmark = pytest.mark.slow

SLOW = "toy?step_seconds=0.05"  # so that the series plays while it trains


def ill(folder: Path, after: Path | None = None, **ails: object) -> Path:
    """`after`: the series begins when that exists."""
    script = folder / "card.json"
    begin = {"begin": str(after)} if after else {}
    memory = {"memory_total": 24_000, "memory": [1_000, 23_500]}
    script.write_text(json.dumps({"celsius": [60], "interval": 0.05, "ails": ails, **begin, **memory}))
    return script


def test_a_card_off_the_bus_ends_the_run_at_once_and_for_good(oracle: Oracle) -> None:
    script = ill(oracle.home, xids={"12": [79]}, hangs=13)
    outcome, story = run_here(toy_spec(oracle.output(), toy=SLOW, steps=400), gpu_script=script)
    assert (outcome.exit_code, outcome.code, outcome.recoveries) == (69, "RUNTIME_GPU_LOST", 0)
    assert "Reboot" in outcome.suggestion
    assert len(story.of(AttemptStarted)) <= 1
    [trouble] = story.of(CardTrouble)
    assert (trouble.source, trouble.code, trouble.deed) == ("xid", 79, "reboot")
    assert not [notice for notice in story.of(Noticed) if "sensors" in notice.text]
    [row] = history.list_rows(oracle.output())
    assert row.gpu_troubles == [{"code": 79, "text": "Xid 79, the GPU has fallen off the bus", "deed": "reboot"}]


def test_no_job_is_given_out_for_a_card_that_needs_a_reset(oracle: Oracle) -> None:
    outcome, story = run_here(toy_spec(oracle.output()), gpu_script=ill(oracle.home, recovery=[1]))
    assert (outcome.exit_code, outcome.code) == (69, "RUNTIME_GPU_LOST")
    assert not story.of(AttemptStarted)


def test_a_card_that_the_driver_lost_is_no_silent_sensor(oracle: Oracle) -> None:
    script = ill(oracle.home, lost=12)
    outcome, story = run_here(toy_spec(oracle.output(), toy=SLOW, steps=400), gpu_script=script)
    assert (outcome.exit_code, outcome.recoveries) == (69, 0)
    assert [fault.kind for fault in story.of(FaultSeen)] == ["gpu_lost"]


def test_errors_of_little_weight_are_told_and_the_run_goes_on(oracle: Oracle, undisturbed: Outcome) -> None:
    script = ill(oracle.home, xids={"3": [63, 45]}, uncorrected=[0, 0, 0, 0, 1], throttle=[0x20])
    outcome, story = run_here(toy_spec(oracle.output(), "segfault:20", toy=SLOW), gpu_script=script)
    assert (outcome.status, outcome.order, outcome.recoveries) == ("completed", undisturbed.order, 1)
    assert {(trouble.source, trouble.deed) for trouble in story.of(CardTrouble)} == {
        ("xid", "advise"),
        ("xid", "note"),
        ("memory", "advise"),
        ("throttle", "advise"),
    }


def test_memory_that_spills_into_the_hosts_halves_the_batch(oracle: Oracle, undisturbed: Outcome) -> None:
    full = oracle.home / "full"
    script = ill(oracle.home, full, shared=[0, 2_000, 2_000, 2_000, 0])
    spills = At(lambda event: isinstance(event, Step) and event.step == 8, full.touch)
    outcome, story = run_here(toy_spec(oracle.output(), toy=SLOW), gpu_script=script, sinks=[spills])
    assert (outcome.status, outcome.order) == ("completed", undisturbed.order)
    assert [fault.kind for fault in story.of(FaultSeen)] == ["oom"]
    first, second = story.of(AttemptStarted)
    assert second.micro_batch * 2 == first.micro_batch
