"""Real training meets real faults: TRL and LoRA in a real child, under a real supervisor and the leak oracle.

The runs are those of tests/system/real.py: an epoch is 7 steps, a checkpoint every fourth. So step 6 lies in the middle
of an epoch, 10 and 11 in the second, 16 in the third.
"""

from __future__ import annotations

import json
import os
import signal
import sys

import pytest

from backpropagate.events import (
    AttemptStarted,
    CheckpointCommitted,
    CheckpointQuarantined,
    FaultSeen,
    Heat,
    ModelReady,
    Recovering,
    Step,
)
from backpropagate_protocol import durable
from tests.conftest import Oracle
from tests.system.real import Trained, assert_bit_identical, assert_same_samples, distance, real_spec, trained
from tests.system.supervised import At, Supervisor, run_here, supervisor

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="a POSIX signal")


def test_deaths_at_the_first_step_in_a_save_in_mid_epoch_and_in_a_later_one_leave_no_trace_in_the_weights(
    oracle: Oracle, untroubled: Trained
) -> None:
    spec = real_spec(oracle.output(), "sigkill:1", "sigkill_in_save:4:2", "sigkill:6:3", "sigkill:11:4")
    outcome, story = run_here(spec)
    assert [(a.resume_step, a.micro_batch) for a in story.of(AttemptStarted)] == [(0, 4), (0, 4), (0, 4), (4, 4), (8, 4)]
    assert [fault.kind for fault in story.of(FaultSeen)] == ["died"] * 4
    assert_bit_identical(trained(spec, outcome), untroubled)


@POSIX
def test_a_child_killed_from_outside_is_replaced_and_the_weights_are_the_same_bits(
    oracle: Oracle, untroubled: Trained
) -> None:
    spec = real_spec(oracle.output(), "hold:10")
    with supervisor(spec) as run:
        run.until(lambda: any(step.step == 9 for step in run.of(Step)), "step 9 was trained")
        os.kill(run.child(), signal.SIGKILL)
        assert run.wait() == 0, run.output()
        assert [attempt.resume_step for attempt in run.of(AttemptStarted)] == [0, 8]
        assert "SIGKILL" in run.of(FaultSeen)[0].death
