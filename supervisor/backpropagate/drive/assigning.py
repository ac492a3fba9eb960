"""A policy's decision to let a child train, as the Job that the child gets and as the event that people do."""

from __future__ import annotations

import time
from collections.abc import Mapping

from backpropagate.events import AttemptStarted
from backpropagate.judge.decisions import Assign
from backpropagate_protocol.jobs import TrainJob
from backpropagate_protocol.rundir import RunDir
from backpropagate_protocol.spec import RunSpec


def train_job(spec: RunSpec, run_dir: RunDir, job: Assign, rehearse: int | None, *, moves_in: bool) -> TrainJob:
    """Without `kernels`. `rehearse`: as in TrainJob. `moves_in`: it stood by, and wrote elsewhere until now."""
    return TrainJob(
        spec=spec,
        run_dir=str(run_dir.path),
        attempt=job.attempt,
        micro_batch=job.micro_batch,
        accumulation=job.accumulation,
        gradient_checkpointing=job.gradient_checkpointing,
        resume_from=str(run_dir.checkpoints / job.checkpoint.name) if job.checkpoint else None,
        prepared=job.prepared,
        held_out=job.held_out,
        smaller=job.smaller,
        rehearse=rehearse,
        log=str(run_dir.log) if moves_in else None,
    )


def attempt_started(
    run_id: str, job: Assign, pid: int, packages: Mapping[str, str], *, standby: bool
) -> AttemptStarted:
    return AttemptStarted(
        time=time.time(),
        run_id=run_id,
        attempt=job.attempt,
        pid=pid,
        micro_batch=job.micro_batch,
        accumulation=job.accumulation,
        checkpoint=job.checkpoint.name if job.checkpoint else None,
        resume_step=job.checkpoint.step if job.checkpoint else 0,
        versions=dict(packages),
        gradient_checkpointing=job.gradient_checkpointing,
        standby=standby,
    )
