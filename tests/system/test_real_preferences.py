"""Preference training meets real faults: real rows, a real child under a real supervisor, killed and halved in the middle."""

from __future__ import annotations

import json

import msgspec
import pytest

from backpropagate.events import AttemptStarted, DataPrepared, FaultSeen, ModelReady, Step
from backpropagate_protocol.rundir import OutputDir
from backpropagate_protocol.spec import RunSpec
from tests.conftest import Oracle
from tests.system.real import assert_same_samples, distance, real_spec, trained
from tests.system.supervised import run_here

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

PAIRS, STEPS = 10, 8  # an epoch is 2 steps of 4 pairs and one of 2


def preference_spec(output: OutputDir, method: str, *faults: str) -> RunSpec:
    """8 steps of 4 samples, a checkpoint at every second one."""
    spec = real_spec(output, *faults, save_steps=2)
    source = output.path.parent / "pairs.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in _rows()))
    return msgspec.structs.replace(
        spec,
        data=msgspec.structs.replace(spec.data, source=str(source), method=method),
        train=msgspec.structs.replace(spec.train, method=method, steps=STEPS),
    )


def _rows() -> list[dict[str, object]]:
    """Prompts of 2 to 12 words; answers of 1 to 13, and the two of a pair hardly ever as long as each other."""
    return [
        {
            "prompt": " ".join(["how", "many"] * (1 + row * 5 % 6)) + f" {row}?",
            "chosen": " ".join(f"w{row + at}" for at in range(1 + row * 7 % 13)),
            "rejected": " ".join(f"v{row * at}" for at in range(1 + row * 11 % 9)),
        }
        for row in range(PAIRS)
    ]


def test_orpo_halved_and_later_killed_sees_the_same_samples_and_ends_with_the_same_weights(oracle: Oracle) -> None:
    plain = preference_spec(oracle.output("plain"), "orpo")
    outcome, story = run_here(plain)
    undisturbed = trained(plain, outcome)
    assert [(data.rows, data.format) for data in story.of(DataPrepared)] == [(PAIRS, "preference")]
    steps = story.of(Step)
    assert {"accuracy", "margin", "nll"} <= steps[-1].extra.keys()
    assert steps[-1].extra["margin"] > steps[0].extra["margin"]

    spec = preference_spec(oracle.output("disturbed"), "orpo", "oom:4", "sigkill:7:2")
    outcome, story = run_here(spec)
    assert [fault.kind for fault in story.of(FaultSeen)] == ["oom", "died"]
    ready = [(each.micro_batch, each.accumulation, each.step) for each in story.of(ModelReady)]
    assert ready == [(4, 1, 0), (2, 2, 2), (2, 2, 6)]
    run = trained(spec, outcome)
    assert_same_samples(run, undisturbed)
    assert distance(run, undisturbed) < 1e-5
    assert outcome.final_loss == pytest.approx(undisturbed.outcome.final_loss, abs=1e-4)


def test_kto_halves_to_two_rows_and_then_saves_memory_by_other_means(oracle: Oracle) -> None:
    """The same pairs: each gives a good answer and a bad one."""
    spec = preference_spec(oracle.output(), "kto", "oom:3", "oom:5:2")
    outcome, story = run_here(spec)
    run = trained(spec, outcome)
    assert [data.rows for data in story.of(DataPrepared)] == [2 * PAIRS]
    assert [(each.micro_batch, each.gradient_checkpointing) for each in story.of(AttemptStarted)] == [
        (4, None),
        (2, None),
        (2, True),
    ]
    assert (run.outcome.step, run.outcome.samples_seen) == (STEPS, 4 * STEPS)
    assert {"kl", "chosen_reward", "rejected_reward"} <= set().union(*(step.extra for step in story.of(Step)))
