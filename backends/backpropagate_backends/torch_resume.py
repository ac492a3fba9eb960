"""May this checkpoint be resumed? All that transformers would silently restart or silently do otherwise is refused here.

Exactness hangs on six conditions. Four are constants of `torch_train`: no dropped batches, no ignored position, plain
random sampling by an explicit data seed, a loss over the whole accumulated batch. The other two are checked: the same
samples (data, seed, effective batch), and a checkpoint that holds all state.
"""

from __future__ import annotations

import json
from pathlib import Path

from backpropagate_backends.course import Course
from backpropagate_backends.same_run import check_same_run
from backpropagate_backends.torch_whole import weights_missing
from backpropagate_protocol.errors import CheckpointError
from backpropagate_protocol.jobs import TrainJob
from backpropagate_protocol.rundir import Manifest

_STATE = "trainer_state.json"
_NEEDED = ("optimizer.pt", "scheduler.pt", "rng_state.pth", _STATE)


def check_resume(
    job: TrainJob, manifest: Manifest, data_digest: str, backend: str, course: Course, scaled: bool
) -> None:
    """Raises CheckpointError if the folder is not a whole state, UserInputError [STATE_RUN_MISMATCH] if it belongs to
    other data, other settings or another backend. `scaled`: fp16, which keeps the loss scale in a file of its own."""
    folder = Path(job.resume_from or "")
    lacks = [name for name in (*_NEEDED, "scaler.pt") if (scaled or name in _NEEDED) and not (folder / name).is_file()]
    weights = weights_missing(folder, whole=job.spec.train.mode == "full")
    for name in [weights, *lacks] if weights is not None else lacks:
        raise CheckpointError(f"{folder.name} has no {name}: training would silently start over with it")
    check_same_run(job, manifest, data_digest, backend, course)
    try:
        step = json.loads((folder / _STATE).read_bytes())["global_step"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder.name} has a {_STATE} that cannot be read: {error}") from error
    if step != manifest.step:
        raise CheckpointError(f"{folder.name} says step {manifest.step}, and its {_STATE} step {step}")
