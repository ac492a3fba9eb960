"""Real training under a real supervisor, for tests: TRL and LoRA on the CPU, the bundled tiny base, few and uneven rows."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from pathlib import Path

import msgspec

from backpropagate.outcome import Outcome
from backpropagate.wishes import models
from backpropagate_protocol.rundir import OutputDir
from backpropagate_protocol.spec import DataSpec, LoraSpec, ModelSpec, RunSpec, SafetySpec, TrainSpec
from tests.system.supervised import planned

ROWS = 26  # an epoch is 6 steps of 4 samples and one of 2
STEPS = 18  # two epochs and 4 steps of the third
SAVE_STEPS = 4
WEIGHTS = "adapter_model.safetensors"


def real_spec(
    output: OutputDir,
    *faults: str,
    learning_rate: float = 2e-3,
    runner_python: Path | None = None,
    **safety: object,
) -> RunSpec:
    """18 steps of 4 samples, a checkpoint at every fourth step. Faults are written as for `toy_spec`."""
    data = output.path.parent / "chat.jsonl"
    if not data.exists():
        data.write_text("".join(json.dumps(row) + "\n" for row in _rows()))
    settings: dict[str, object] = {"save_steps": SAVE_STEPS, "hang_floor": 60.0, "grace": 60.0, **safety}
    return RunSpec(
        run_id=str(uuid.uuid4()),
        created="2026-01-01T00:00:00Z",
        backend="cpu",
        output=str(output.path),
        model=ModelSpec(name=models.TINY, path=models.resolve_model(models.TINY).path),
        data=DataSpec(source=str(data)),
        lora=LoraSpec(r=8, alpha=16),
        train=TrainSpec(steps=STEPS, effective_batch=4, warmup_steps=2, learning_rate=learning_rate),
        safety=msgspec.convert(settings, SafetySpec),
        runner_python=str(runner_python) if runner_python else None,
        faults=tuple(planned(text) for text in faults),
    )


def _rows() -> list[dict[str, object]]:
    """Questions and answers of 1 to 13 words, no two neighbours alike: equal lengths would prove nothing."""
    return [
        {
            "messages": [
                {"role": "user", "content": " ".join(["how", "many"] * (1 + row * 5 % 6)) + f" {row}?"},
                {"role": "assistant", "content": " ".join(f"w{row + at}" for at in range(1 + row * 7 % 13))},
            ]
        }
        for row in range(ROWS)
    ]


@dataclass(frozen=True)
class Trained:
    """A finished run, and its adapter's weights as they are on disk."""

    outcome: Outcome
    weights: bytes


def trained(spec: RunSpec, outcome: Outcome) -> Trained:
    """What a run that has to be completed by now left behind."""
    assert (outcome.status, outcome.exit_code) == ("completed", 0), outcome
    return Trained(outcome, (OutputDir(Path(spec.output)).run(spec.run_id).adapter / WEIGHTS).read_bytes())


def assert_bit_identical(run: Trained, undisturbed: Trained) -> None:
    """The same samples in the same order, and every bit of the result as if nothing had happened."""
    assert_same_samples(run, undisturbed)
    assert run.outcome.final_loss == undisturbed.outcome.final_loss
    assert run.weights == undisturbed.weights


def assert_same_samples(run: Trained, undisturbed: Trained) -> None:
    one, other = run.outcome, undisturbed.outcome
    assert (one.step, one.samples_seen, one.order) == (other.step, other.samples_seen, other.order)


def distance(run: Trained, undisturbed: Trained) -> float:
    """The largest difference of any weight."""
    from safetensors.numpy import load  # here: the toy runs of this folder are also made where it is not installed

    left, right = load(run.weights), load(undisturbed.weights)
    assert left.keys() == right.keys()
    return max(float(abs(left[name] - right[name]).max()) for name in left)
