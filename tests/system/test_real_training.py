"""Real training meets real faults: TRL and LoRA in a real child, under a real supervisor and the leak oracle.

The runs are those of tests/system/real.py: an epoch is 7 steps, a checkpoint every fourth. So step 6 lies in the middle
of an epoch, and 10 to 13 in the middle of the second.
"""

from __future__ import annotations

import sys

import psutil
import pytest

from backpropagate.events import (
    AttemptStarted,
    CheckpointCommitted,
    CheckpointQuarantined,
    FaultSeen,
    ModelReady,
    Recovering,
    Step,
)
from backpropagate_protocol import durable
from tests.conftest import Oracle
from tests.system.real import Trained, assert_bit_identical, assert_same_samples, distance, real_spec, trained
from tests.system.supervised import run_here, supervisor

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="a POSIX signal")


def test_deaths_at_the_first_step_and_during_a_save_leave_the_same_bits(oracle: Oracle, untroubled: Trained) -> None:
    spec = real_spec(oracle.output(), "sigkill:1", "sigkill_in_save:8:2")
    outcome, story = run_here(spec)
    assert [(a.resume_step, a.micro_batch) for a in story.of(AttemptStarted)] == [(0, 4), (0, 4), (4, 4)]
    assert [fault.kind for fault in story.of(FaultSeen)] == ["died"] * 2
    assert_bit_identical(trained(spec, outcome), untroubled)


@POSIX
def test_a_child_killed_from_outside_in_the_second_epoch_leaves_the_same_bits(
    oracle: Oracle, untroubled: Trained
) -> None:
    spec = real_spec(oracle.output(), "hold:10")
    with supervisor(spec) as run:
        run.until(lambda: any(step.step == 9 for step in run.of(Step)), "step 9 was trained")
        psutil.Process(run.child()).kill()
        assert run.wait() == 0, run.output()
        assert [attempt.resume_step for attempt in run.of(AttemptStarted)] == [0, 8]
        assert "SIGKILL" in run.of(FaultSeen)[0].death
    assert_bit_identical(trained(spec, run.outcome()), untroubled)


@POSIX
def test_a_child_stopped_in_mid_epoch_is_replaced_and_leaves_the_same_bits(oracle: Oracle, untroubled: Trained) -> None:
    spec = real_spec(oracle.output(), "sigstop:6", hang_floor=8.0)
    outcome, story = run_here(spec)
    assert "RUNTIME_HANG" in [fault.code for fault in story.of(FaultSeen)]
    assert story.of(AttemptStarted)[1].resume_step == 4
    assert_bit_identical(trained(spec, outcome), untroubled)


def test_out_of_memory_at_the_first_step_and_in_the_second_epoch_halves_twice_and_sees_the_same_samples(
    oracle: Oracle, untroubled: Trained
) -> None:
    spec = real_spec(oracle.output(), "oom:1", "oom:11:2")
    outcome, story = run_here(spec)
    assert [fault.code for fault in story.of(FaultSeen)] == ["RUNTIME_GPU_OOM"] * 2
    assert [(ready.micro_batch, ready.accumulation, ready.step) for ready in story.of(ModelReady)] == [
        (4, 1, 0),
        (2, 2, 0),
        (1, 4, 8),
    ]
    run = trained(spec, outcome)
    assert_same_samples(run, untroubled)
    assert distance(run, untroubled) < 1e-5
    assert outcome.final_loss == pytest.approx(untroubled.outcome.final_loss, abs=1e-4)


def test_a_truncated_and_later_a_flipped_newest_checkpoint_is_put_aside_and_the_run_leaves_the_same_bits(
    oracle: Oracle, untroubled: Trained
) -> None:
    spec = real_spec(oracle.output(), "torn_save:8", "sigkill:10", "bitflip_save:12:2", "sigkill:13:2")
    outcome, story = run_here(spec)
    assert [aside.name for aside in story.of(CheckpointQuarantined)] == ["step-00000008", "step-00000012"]
    assert [recovering.resume_step for recovering in story.of(Recovering)] == [4, 8]
    aside = [folder.name for folder in oracle.output().run(spec.run_id).checkpoints.glob("*.quarantine")]
    assert sorted(aside) == ["step-00000008.quarantine", "step-00000012.quarantine"]
    assert_bit_identical(trained(spec, outcome), untroubled)


def test_a_training_that_really_diverges_stops_with_a_checkpoint_that_verifies(oracle: Oracle) -> None:
    spec = real_spec(oracle.output(), learning_rate=1e30, save_steps=1)
    outcome, story = run_here(spec)
    assert (outcome.status, outcome.exit_code, outcome.code) == ("failed", 2, "RUNTIME_LOSS_DIVERGED")
    assert len(story.of(AttemptStarted)) == 1
    assert outcome.step == story.of(CheckpointCommitted)[-1].step
    assert durable.verify_dir(oracle.output().run(spec.run_id).checkpoint(outcome.step)).loss is not None
