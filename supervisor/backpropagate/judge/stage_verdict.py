"""What is to be done about a fault in a stage of an export: one function from cause and history to a verdict. Pure.

A stage keeps nothing half-made, so doing it again always begins anew; what may change is how much memory it takes, and
whether a reference is made on the card.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from backpropagate.judge.plan import Stage
from backpropagate.judge.states import BACKOFF
from backpropagate.judge.verdict import Cause, GiveUp, Kind
from backpropagate_protocol.catalogue import CATALOGUE, Retry
from backpropagate_protocol.jobs import (
    CombineJob,
    ConvertJob,
    EvaluateJob,
    MergeJob,
    PreflightJob,
    ProveJob,
    ReferenceJob,
    StageJob,
)

MORE_TRIES = 2
LATER = (2.0, 8.0)  # seconds before what is out of our hands is tried again
SMALLER_TRIES = 2
OTHER_WAYS = 2  # an evaluation row by row, then without the card; a reference without the card
LEAST_MEMORY = 64  # MiB
_MLX = (
    "mlx"  # what it quantised no other backend reads, and its card's memory is the machine's: there is no way without
)

_OUTSIDE = ("DEP_", "HUB_", "STATE_")  # codes of what is not ours: a server, a network
_OF_THE_CARD = frozenset({Kind.OOM, Kind.CUDA, Kind.GPU_BUSY, Kind.GPU_LOST})
# Codes that name a training, or only how a process ended: the stage has a better one.
_UNSAID = frozenset(
    {
        "RUNTIME_TRAINING_FAILED",
        "RUNTIME_CHILD_DIED",
        "RUNTIME_HANG",
        "RUNTIME_PROTOCOL",
        "RUNTIME_GPU_OOM",
        "RUNTIME_GPU_ERROR",
    }
)


@dataclass(frozen=True, slots=True)
class Anew:
    """Do the stage again, with this Job, after `delay` seconds."""

    job: StageJob
    delay: float


def judge(cause: Cause, stage: Stage, job: StageJob, earlier: Sequence[Cause]) -> Anew | GiveUp:
    """`job`: as the failed child had it. `earlier`: the causes before this one, of this supervisor."""
    if cause.kind is Kind.DISK:
        return _give_up(stage, cause, earlier, "RUNTIME_DISK_FULL")
    if cause.kind is Kind.HOST_OOM:
        spent = sum(before.kind is Kind.HOST_OOM for before in earlier)
        return Anew(_smaller(job), 0.0) if spent < SMALLER_TRIES else _give_up(stage, cause, earlier)
    if cause.kind is Kind.OOM and isinstance(job, EvaluateJob) and job.batch_size > 1:
        return Anew(msgspec.structs.replace(job, batch_size=1), 0.0)
    if cause.kind is Kind.OOM and isinstance(job, ReferenceJob | EvaluateJob) and job.backend == _MLX:
        return _give_up(stage, cause, earlier, "RUNTIME_GPU_OOM")
    if cause.kind in _OF_THE_CARD and isinstance(job, ReferenceJob | EvaluateJob) and job.backend not in ("cpu", _MLX):
        return Anew(msgspec.structs.replace(job, backend="cpu"), 0.0)
    tries = len(earlier) - _free_of_charge(job, earlier)
    info = CATALOGUE.get(cause.code)
    if info is not None and info.retry is Retry.LATER and cause.code.startswith(_OUTSIDE):
        patient = not isinstance(job, PreflightJob)  # which is there to say at once what is missing
        return Anew(job, LATER[tries]) if patient and tries < MORE_TRIES else _give_up(stage, cause, earlier)
    hopeless = cause.kind in (Kind.USER, Kind.MISMATCH) or (info is not None and info.retry is Retry.NEVER)
    again = cause.kind is Kind.INTERNAL and any(before.message == cause.message for before in earlier)
    if hopeless or again or tries >= MORE_TRIES:
        return _give_up(stage, cause, earlier)
    return Anew(job, BACKOFF[tries])


def _free_of_charge(job: StageJob, earlier: Sequence[Cause]) -> int:
    """Causes that were answered by doing the stage in another way: with less memory, row by row, or without the card."""
    of_the_card = sum(before.kind in _OF_THE_CARD for before in earlier)
    ways = 1 if isinstance(job, ReferenceJob) else 2 if isinstance(job, EvaluateJob) else 0
    return sum(before.kind is Kind.HOST_OOM for before in earlier) + min(of_the_card, ways)


def _smaller(job: StageJob) -> StageJob:
    """Half the memory, where the stage can do with less."""
    if isinstance(job, MergeJob | ConvertJob | ProveJob | CombineJob):
        return msgspec.structs.replace(job, memory=max(LEAST_MEMORY, job.memory // 2))
    return job


def _give_up(stage: Stage, cause: Cause, earlier: Sequence[Cause], code: str = "") -> GiveUp:
    unsaid = cause.code in _UNSAID and cause.kind is not Kind.MISMATCH
    code = code or (stage.failed if unsaid else cause.code)
    info = CATALOGUE.get(code, CATALOGUE["RUNTIME_EXPORT_FAILED"])
    causes = list(dict.fromkeys([*(before.message for before in earlier), cause.message]))
    times = f" {len(earlier) + 1} times" if earlier else ""
    plain = not earlier and code == cause.code
    message = cause.message if plain else f"{stage.name} failed{times}: {'; '.join(causes)}"
    suggestion = cause.suggestion if cause.suggestion and info.code == cause.code else info.remedy
    return GiveUp(info.exit, info.code, message, suggestion)
