"""A want of memory met where it costs least: before the first step, within the step, or by waiting for whoever has the memory."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from backpropagate.events import (
    AttemptStarted,
    BatchHalved,
    FaultSeen,
    MemoryAwaited,
    Recovering,
    Rehearsal,
)
from backpropagate.keep import userstate
from backpropagate.outcome import Outcome
from tests.conftest import Oracle
from tests.system.supervised import run_here, toy_spec

pytestmark = pytest.mark.slow


def _card(folder: Path, **card: object) -> Path:
    script = folder / "card.json"
    script.write_text(json.dumps({"celsius": [60], "interval": 0.05, **card}))
    return script


def _batches(attempts: list[AttemptStarted]) -> list[tuple[int, int]]:
    return [(attempt.micro_batch, attempt.accumulation) for attempt in attempts]


def test_a_shortage_within_a_step_costs_no_child_and_one_soon_after_costs_one(
    oracle: Oracle, undisturbed: Outcome
) -> None:
    outcome, story = run_here(toy_spec(oracle.output(), "oom_in_forward:12", "oom_in_backward:14"))
    assert (outcome.status, outcome.order, outcome.recoveries) == ("completed", undisturbed.order, 1)
    (halved,) = story.of(BatchHalved)
    assert (halved.step, halved.micro_batch, halved.accumulation) == (12, 4, 2)
    assert _batches(story.of(AttemptStarted)) == [(8, 1), (2, 4)]
    assert [fault.step for fault in story.of(FaultSeen)] == [13]


def test_a_shortage_in_the_optimizer_goes_back_to_the_newest_checkpoint(oracle: Oracle, undisturbed: Outcome) -> None:
    outcome, story = run_here(toy_spec(oracle.output(), "oom_in_optimizer:12"))
    assert (outcome.status, outcome.order) == ("completed", undisturbed.order)
    assert story.of(BatchHalved) == []
    assert [(r.resume_step, r.micro_batch) for r in story.of(Recovering)] == [(10, 4)]


def test_a_thrashing_allocator_is_left_with_no_step_lost(oracle: Oracle, undisturbed: Outcome) -> None:
    outcome, story = run_here(toy_spec(oracle.output(), "thrash:11", "thrash:12"))
    assert (outcome.status, outcome.order) == ("completed", undisturbed.order)
    assert [(r.resume_step, r.steps_lost, r.micro_batch) for r in story.of(Recovering)] == [(12, 0, 4)]


def test_without_recovery_a_shortage_within_a_step_ends_the_run(oracle: Oracle) -> None:
    outcome, story = run_here(toy_spec(oracle.output(), "oom_in_forward:3", oom_recovery=False))
    assert (outcome.exit_code, outcome.code, outcome.recoveries) == (2, "RUNTIME_GPU_OOM", 0)
    assert story.of(BatchHalved) == []


def test_on_a_card_the_longest_rows_are_tried_before_the_first_step_and_what_fitted_is_not_tried_again(
    oracle: Oracle,
) -> None:
    script = _card(oracle.home, memory_total=24_000)
    _, first = run_here(toy_spec(oracle.output(), "oom_in_backward:0"), gpu_script=script)
    (halved,), (rehearsal,) = first.of(BatchHalved), first.of(Rehearsal)
    assert (halved.step, halved.micro_batch, rehearsal.micro_batch) == (0, 2, 2)
    _, second = run_here(toy_spec(oracle.output()), gpu_script=script)
    assert [attempt.micro_batch for attempt in second.of(AttemptStarted)] == [2]
    assert second.of(Rehearsal) == []
    assert userstate.rehearsed(userstate.fit_key("Scripted GPU", toy_spec(oracle.output())), 2) == rehearsal.tokens


def test_memory_that_others_hold_is_waited_for_by_name_and_costs_no_halving(
    oracle: Oracle, undisturbed: Outcome
) -> None:
    there = [[os.getpid(), "/usr/bin/blender", 9_000]]
    spec = toy_spec(oracle.output(), "oom_by_others:12")
    shortly_before = oracle.output().run(spec.run_id).checkpoint(10)
    script = _card(oracle.home, holders=[[], *[there] * 40, []], begin=str(shortly_before))
    outcome, story = run_here(spec, gpu_script=script)
    assert (outcome.status, outcome.order) == ("completed", undisturbed.order)
    assert len({attempt.micro_batch for attempt in story.of(AttemptStarted)}) == 1
    waits = story.of(MemoryAwaited)
    assert f"blender (pid {os.getpid()}, 9,000 MiB)" in waits[-1].holders
