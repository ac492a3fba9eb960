"""Every fault of the policy's table, brought about at an exact step in a real child, under the leak oracle."""

from __future__ import annotations

import sys

import pytest

from backpropagate.events import AttemptStarted, CheckpointMissed, CheckpointQuarantined, FaultSeen, Recovering
from backpropagate.keep import faults
from backpropagate.outcome import Outcome
from backpropagate_protocol import durable
from backpropagate_protocol.rundir import OutputDir
from tests.conftest import Oracle
from tests.system.supervised import run_here, toy_spec

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="a POSIX signal")

pytestmark = pytest.mark.slow


def assert_same_samples(outcome: Outcome, undisturbed: Outcome) -> None:
    """Every sample was seen exactly as planned, and the result is where it belongs."""
    assert (outcome.status, outcome.exit_code) == ("completed", 0)
    assert (outcome.step, outcome.samples_seen, outcome.order) == (
        undisturbed.step,
        undisturbed.samples_seen,
        undisturbed.order,
    )
    assert outcome.final_loss == pytest.approx(undisturbed.final_loss, rel=1e-9)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("segfault:12", "died"),
        ("abort:12", "died"),
        ("sigkill:12", "died"),
        ("sigkill:1", "died"),
        ("exit0:12", "died"),
        ("sigkill_in_save:10", "died"),
        ("sigkill_before_manifest:10", "died"),
        ("error:12", "internal"),
        ("garbage:12", "protocol"),
        pytest.param("sigterm_self:12", "died", marks=POSIX),
    ],
)
def test_a_child_that_fails_once_is_replaced_and_sees_the_same_samples(
    oracle: Oracle, undisturbed: Outcome, fault: str, kind: str
) -> None:
    outcome, story = run_here(toy_spec(oracle.output(), fault))
    assert_same_samples(outcome, undisturbed)
    assert outcome.recoveries == 1
    assert [seen.kind for seen in story.of(FaultSeen)] == [kind]
    assert {attempt.micro_batch for attempt in story.of(AttemptStarted)} == {8}


@pytest.mark.parametrize(("fault", "kind"), [("oom:12", "oom"), ("cuda_fault:12", "cuda"), ("host_oom:12", "host_oom")])
def test_a_fault_of_memory_halves_the_micro_batch_and_changes_no_sample(
    oracle: Oracle, undisturbed: Outcome, fault: str, kind: str
) -> None:
    outcome, story = run_here(toy_spec(oracle.output(), fault))
    assert_same_samples(outcome, undisturbed)
    assert [seen.kind for seen in story.of(FaultSeen)] == [kind]
    assert [(a.micro_batch, a.accumulation) for a in story.of(AttemptStarted)] == [(8, 1), (4, 2)]
    assert [(r.checkpoint, r.resume_step) for r in story.of(Recovering)] == [("step-00000010", 10)]


@pytest.mark.parametrize("fault", ["hang:12", "hang_gil:12", pytest.param("sigstop:12", marks=POSIX)])
def test_a_child_that_makes_no_progress_is_replaced(oracle: Oracle, undisturbed: Outcome, fault: str) -> None:
    spec = toy_spec(oracle.output(), fault, hang_floor=1.0)
    outcome, story = run_here(spec)
    assert_same_samples(outcome, undisturbed)
    assert {seen.code for seen in story.of(FaultSeen)} == {"RUNTIME_HANG"}  # on a starved machine, more than once
    if sys.platform == "linux":
        ended_by = [record.ended_by for record in faults.read_all(oracle.output().run(spec.run_id))]
        assert any("someone had stopped it" in why for why in ended_by) is fault.startswith("sigstop")


def test_steps_that_are_slower_than_the_floor_are_no_hang(oracle: Oracle) -> None:
    spec = toy_spec(oracle.output(), toy="toy?step_seconds=1.3", steps=4, hang_floor=0.2)
    outcome, _ = run_here(spec)
    assert (outcome.status, outcome.recoveries) == ("completed", 0)


@POSIX
def test_the_stacks_of_a_hung_child_are_in_the_log(oracle: Oracle) -> None:
    spec = toy_spec(oracle.output(), "hang_gil:12", hang_floor=1.0)
    run_here(spec)
    assert "before_step" in OutputDir(oracle.output().path).run(spec.run_id).log.read_text()


def test_out_of_memory_at_micro_batch_one_turns_on_gradient_checkpointing_and_then_gives_up(oracle: Oracle) -> None:
    outcome, story = run_here(toy_spec(oracle.output(), "oom:3:0"))
    assert (outcome.status, outcome.exit_code, outcome.code) == ("failed", 2, "RUNTIME_GPU_OOM")
    assert [a.micro_batch for a in story.of(AttemptStarted)] == [8, 4, 2, 1, 1]
    assert "2048 MiB were asked for" in outcome.message
    assert "1536 MiB were free" in outcome.message


def test_without_recovery_the_first_out_of_memory_ends_the_run(oracle: Oracle) -> None:
    outcome, _ = run_here(toy_spec(oracle.output(), "oom:3", oom_recovery=False))
    assert (outcome.exit_code, outcome.code, outcome.recoveries) == (2, "RUNTIME_GPU_OOM", 0)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("cuda_fault:12:0", "RUNTIME_GPU_ERROR"),
        ("segfault:13:0", "RUNTIME_CHILD_DIED"),
        ("error:12:0", "RUNTIME_TRAINING_FAILED"),
    ],
)
def test_the_same_fault_at_the_same_step_twice_ends_the_run(oracle: Oracle, fault: str, code: str) -> None:
    outcome, _ = run_here(toy_spec(oracle.output(), fault))
    assert (outcome.status, outcome.exit_code, outcome.code) == ("failed", 2, code)
    assert (outcome.step, outcome.recoveries) == (10, 1)


def test_a_crash_loop_ends_with_every_cause_listed(oracle: Oracle) -> None:
    outcome, _ = run_here(toy_spec(oracle.output(), "sigkill:0:0", max_respawns=2))
    assert (outcome.exit_code, outcome.code, outcome.recoveries) == (2, "RUNTIME_CRASH_LOOP", 2)
    assert outcome.message.count("SIGKILL") == 3 or sys.platform == "win32"


def test_a_lost_gpu_is_not_tried_again(oracle: Oracle) -> None:
    outcome, _ = run_here(toy_spec(oracle.output(), "device_lost:12"))
    assert (outcome.status, outcome.exit_code, outcome.code) == ("failed", 69, "RUNTIME_GPU_LOST")
    assert outcome.recoveries == 0


def test_a_loss_that_is_no_number_stops_at_the_last_good_checkpoint(oracle: Oracle) -> None:
    spec = toy_spec(oracle.output(), "nan:12")
    outcome, _ = run_here(spec)
    assert (outcome.exit_code, outcome.code, outcome.step) == (2, "RUNTIME_LOSS_DIVERGED", 10)
    run_dir = oracle.output().run(spec.run_id)
    assert durable.verify_dir(run_dir.checkpoint(10)).step == 10


def test_a_data_set_that_is_not_there_is_the_users_error_and_is_not_tried_again(oracle: Oracle) -> None:
    spec = toy_spec(oracle.output())
    (oracle.home / "rows.jsonl").unlink()
    outcome, story = run_here(spec)
    assert (outcome.exit_code, outcome.code) == (1, "INPUT_DATASET_NOT_FOUND")
    assert len(story.of(AttemptStarted)) == 1


def test_a_checkpoint_that_the_disk_did_not_take_is_tried_again_later(oracle: Oracle, undisturbed: Outcome) -> None:
    outcome, story = run_here(toy_spec(oracle.output(), "disk_full:10", "disk_error:15"))
    assert_same_samples(outcome, undisturbed)
    assert [missed.failures for missed in story.of(CheckpointMissed)] == [1, 2]


def test_a_disk_that_stays_full_stops_the_run_resumable(oracle: Oracle) -> None:
    faults = [f"disk_full:{step}:0" for step in (10, 15, 20, 25, 30)]
    outcome, _ = run_here(toy_spec(oracle.output(), *faults, toy="toy?step_seconds=0.02"))
    assert (outcome.status, outcome.exit_code, outcome.code) == ("interrupted", 75, "RUNTIME_DISK_FULL")
    assert outcome.step == 5


@pytest.mark.parametrize("damage", ["torn_save", "bitflip_save"])
def test_a_damaged_newest_checkpoint_is_put_aside_and_the_one_before_is_used(
    oracle: Oracle, undisturbed: Outcome, damage: str
) -> None:
    spec = toy_spec(oracle.output(), f"{damage}:10", "sigkill:12")
    outcome, story = run_here(spec)
    assert_same_samples(outcome, undisturbed)
    assert [(q.name) for q in story.of(CheckpointQuarantined)] == ["step-00000010"]
    assert [r.checkpoint for r in story.of(Recovering)] == ["step-00000005"]
    assert (oracle.output().run(spec.run_id).checkpoints / "step-00000010.quarantine").is_dir()


def test_prints_of_libraries_do_not_reach_the_protocol(oracle: Oracle, undisturbed: Outcome) -> None:
    outcome, _ = run_here(toy_spec(oracle.output(), "print_noise:12"))
    assert_same_samples(outcome, undisturbed)
    assert outcome.recoveries == 0


def test_a_flood_of_progress_is_read_to_its_end(oracle: Oracle, undisturbed: Outcome) -> None:
    outcome, _ = run_here(toy_spec(oracle.output(), "flood:12"))
    assert_same_samples(outcome, undisturbed)
    assert outcome.recoveries == 0


def test_a_result_stands_although_the_child_hangs_after_it(oracle: Oracle, undisturbed: Outcome) -> None:
    outcome, story = run_here(toy_spec(oracle.output(), "hang_teardown:1"))
    assert_same_samples(outcome, undisturbed)
    assert not story.of(FaultSeen)


def test_an_interpreter_without_the_runner_is_named_and_not_tried_again(oracle: Oracle) -> None:
    import msgspec

    spec = msgspec.structs.replace(toy_spec(oracle.output()), runner_python=str(oracle.home / "no-such-python"))
    outcome, _ = run_here(spec)
    assert (outcome.exit_code, outcome.code, outcome.recoveries) == (1, "DEP_RUNNER_MISSING", 0)
