"""What a child says, as events of the run. Pure."""

from __future__ import annotations

from typing import assert_never

import msgspec

from backpropagate.events import (
    BatchHalved,
    CheckpointCommitted,
    CheckpointMissed,
    DataPrepared,
    Evaluation,
    Event,
    ExportProved,
    ModelReady,
    Noticed,
    PhaseEntered,
    Rehearsal,
    RouteFound,
    Step,
)
from backpropagate.measured import Check
from backpropagate_protocol.measured import Proof
from backpropagate_protocol.messages import (
    CheckpointFailed,
    CheckpointSaved,
    DataReady,
    Done,
    Evaluated,
    ExportRoute,
    Fault,
    Halved,
    Hello,
    Notice,
    PhaseChanged,
    Progress,
    Rehearsed,
    Said,
    Started,
    Stopped,
    ToParent,
    Turn,
)
from backpropagate_protocol.redact import redact


def narrate(message: ToParent, *, time: float, run_id: str, attempt: int) -> Event | None:
    """The event that the message is; None where the policy tells it in its own words, or nobody needs to know."""
    match message:
        case Progress():
            return Step(
                time=time,
                run_id=run_id,
                step=message.step,
                total_steps=message.total_steps,
                samples_seen=message.samples_seen,
                order=message.order,
                loss=message.loss,
                learning_rate=message.learning_rate,
                grad_norm=message.grad_norm,
                tokens=message.tokens,
                step_seconds=message.step_seconds,
                epoch=message.epoch,
                memory_used=message.memory_used,
                memory_reserved=message.memory_reserved,
                extra=message.extra,
            )
        case Evaluated():
            return Evaluation(time=time, run_id=run_id, **msgspec.structs.asdict(message))
        case Rehearsed():
            return Rehearsal(time=time, run_id=run_id, **msgspec.structs.asdict(message))
        case Halved():
            told = msgspec.structs.asdict(message) | {"reason": redact(message.reason)}
            return BatchHalved(time=time, run_id=run_id, attempt=attempt, **told)
        case PhaseChanged():
            return PhaseEntered(
                time=time,
                run_id=run_id,
                phase=message.phase.value,
                done=message.done,
                total=message.total,
                detail=message.detail,
            )
        case DataReady():
            return DataPrepared(
                time=time,
                run_id=run_id,
                path=message.path,
                digest=message.digest,
                format=message.format,
                rows=message.rows,
                skipped=message.skipped,
                tokens=message.tokens,
                trained_tokens=message.trained_tokens,
                truncated=message.truncated,
                source_digest=message.source_digest,
                held_out_path=message.held_out_path,
                held_out_digest=message.held_out_digest,
                held_out_rows=message.held_out_rows,
                dropped=message.dropped,
            )
        case Started():
            return ModelReady(
                time=time,
                run_id=run_id,
                attempt=attempt,
                backend=message.backend,
                device=message.device,
                step=message.step,
                total_steps=message.total_steps,
                micro_batch=message.micro_batch,
                accumulation=message.accumulation,
                trainable_parameters=message.trainable_parameters,
                parameters=message.parameters,
                precision=message.precision,
                device_memory=message.device_memory,
                gpu_uuid=message.gpu_uuid,
                notes=message.notes,
                optimizer=message.optimizer,
            )
        case CheckpointSaved():
            return CheckpointCommitted(
                time=time,
                run_id=run_id,
                name=message.name,
                step=message.step,
                samples_seen=message.samples_seen,
                order=message.order,
                seconds=message.seconds,
                bytes=message.bytes,
                loss=message.loss,
                blocked=message.blocked,
            )
        case CheckpointFailed():
            return CheckpointMissed(
                time=time,
                run_id=run_id,
                step=message.step,
                code=message.code,
                message=redact(message.message),
                failures=message.failures,
            )
        case Notice():
            return Noticed(time=time, run_id=run_id, level=message.level, text=redact(message.text))
        case Done(result=ExportRoute() as route):
            return RouteFound(time=time, run_id=run_id, **msgspec.structs.asdict(route))
        case Done(result=Proof() as proof):
            return ExportProved(
                time=time,
                run_id=run_id,
                passed=proof.passed,
                verifier=proof.verifier,
                checks=tuple(Check(c.name, c.passed, c.value, c.bound, redact(c.detail)) for c in proof.checks),
                prompts=proof.prompts,
                positions=proof.positions,
            )
        case Hello() | Fault() | Stopped() | Done() | Said() | Turn():
            return None
        case _:
            assert_never(message)
