"""Faults of every kind at random steps, one after the other: the samples are those of the undisturbed run all the same."""

from __future__ import annotations

import sys
from random import Random

import pytest

from backpropagate.events import AttemptStarted, FaultSeen
from backpropagate.outcome import Outcome
from tests.conftest import Oracle
from tests.system.supervised import STEPS, run_here, toy_spec

pytestmark = pytest.mark.slow

KINDS = ["oom", "cuda_fault", "host_oom", "error", "segfault", "abort", "sigkill", "exit0", "garbage"]
SAVING = ["sigkill_in_save", "sigkill_before_manifest", "torn_save", "bitflip_save", "disk_full", "disk_error"]


@pytest.mark.parametrize("seed", range(6))
def test_a_row_of_random_faults_changes_no_sample(oracle: Oracle, undisturbed: Outcome, seed: int) -> None:
    random = Random(seed)
    kinds = KINDS + ([] if sys.platform == "win32" else ["sigterm_self"])
    faults = [f"{random.choice(kinds)}:{random.randint(1, STEPS)}:{attempt}" for attempt in range(1, 6)]
    faults += [f"{random.choice(SAVING)}:{random.randrange(5, STEPS, 5)}:{attempt}" for attempt in range(1, 6)]
    outcome, story = run_here(toy_spec(oracle.output(), *faults, max_respawns=20, max_halvings=20))
    told = f"seed {seed}: {faults}"
    assert outcome.status == "completed", f"{told}: {outcome.message}"
    assert (outcome.order, outcome.samples_seen) == (undisturbed.order, undisturbed.samples_seen), told
    assert outcome.final_loss == pytest.approx(undisturbed.final_loss, rel=1e-9)
    assert len(story.of(AttemptStarted)) == len(story.of(FaultSeen)) + 1
    assert all(a.micro_batch * a.accumulation == 8 for a in story.of(AttemptStarted))
