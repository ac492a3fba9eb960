"""A toy run whose held-out loss falls and then rises: what it learns leads past what it is scored on."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from backpropagate_protocol.jobs import PreparedRef, TrainJob
from backpropagate_protocol.messages import DataReady
from backpropagate_protocol.spec import PlannedFault, RunSpec, SafetySpec
from tests.runner.child import again, train_job

HOLDOUT = 4
STEPS = 24
EVERY = 3
BEST = 12  # the step with the best score; the ones before it fall, those after it rise


def write_rows(path: Path) -> Path:
    """40 rows; every fourth is held out, and of small bytes."""
    rows = [("  !!" if row % HOLDOUT == HOLDOUT - 1 else "~~zz") * (1 + row % 5) for row in range(40)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    return path


def evaluated(spec: RunSpec, **train: object) -> RunSpec:
    """The same run with held-out rows, scored after every third step."""
    wishes = {"eval_steps": EVERY, "learning_rate": 5e-5, "warmup_steps": 0, **train}
    return msgspec.structs.replace(
        spec,
        data=msgspec.structs.replace(spec.data, holdout=HOLDOUT),
        train=msgspec.structs.replace(spec.train, **wishes),
    )


def evaluated_job(
    folder: Path, run_id: str = "0001", *, faults: tuple[PlannedFault, ...] = (), keep: int = 10, **train: object
) -> TrainJob:
    """Checkpoints at every eighth step, where no score is due, and wherever the runner wants one."""
    write_rows(folder / "rows.jsonl")
    safety = SafetySpec(save_steps=8, keep_checkpoints=keep)
    job = train_job(folder, run_id=run_id, steps=STEPS, faults=faults, safety=safety)
    return msgspec.structs.replace(job, spec=evaluated(job.spec, **train))


def next_attempt(job: TrainJob, ready: DataReady, *, step: int, micro_batch: int | None = None) -> TrainJob:
    """With both parts of the data."""
    later = again(job, ready, step=step, micro_batch=micro_batch)
    return msgspec.structs.replace(later, held_out=PreparedRef(ready.held_out_path, ready.held_out_digest))
