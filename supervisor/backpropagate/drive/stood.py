"""Where a run stood when its last supervisor ended: read from its journal, for the next one to go on from."""

from __future__ import annotations

from dataclasses import dataclass

from backpropagate.events import AttemptStarted, BatchHalved, CheckpointCommitted, DataPrepared
from backpropagate.judge import telling
from backpropagate.judge.campaign import Facts
from backpropagate.judge.start import Start, first_micro_batch
from backpropagate.keep import journal
from backpropagate.keep.past import Past
from backpropagate.keep.record import Record
from backpropagate_protocol.jobs import PreparedRef
from backpropagate_protocol.rundir import RunDir
from backpropagate_protocol.spec import RunSpec


@dataclass(frozen=True, slots=True)
class Stood:
    """What earlier supervisors left: the record so far, how the next child of the training begins, what stages are done."""

    record: Record
    start: Start
    past: Past
    status: str
    facts: Facts | None = None  # of a campaign


def where_it_stood(spec: RunSpec, run_dir: RunDir) -> Stood:
    record, past = Record(spec, run_dir), Past()
    facts = Facts.of(spec) if spec.campaign else None
    attempts, micro, prepared, held_out, source = 0, None, None, None, ""
    checkpointing = spec.train.gradient_checkpointing
    saves: list[float] = []
    for event in journal.read(run_dir.events):
        record.fold(event)
        past.event(event)
        if facts is not None:
            facts.event(event)
        if isinstance(event, AttemptStarted):
            attempts, micro = max(attempts, event.attempt), event.micro_batch
            checkpointing = checkpointing if event.gradient_checkpointing is None else event.gradient_checkpointing
        elif isinstance(event, CheckpointCommitted):
            saves.append(event.seconds)
        elif isinstance(event, BatchHalved):
            micro = event.micro_batch
        elif isinstance(event, DataPrepared):
            prepared, held_out = PreparedRef(event.path, event.digest), telling.held_out(event)
            source = event.source_digest
    start = Start(
        micro_batch=micro or first_micro_batch(spec),
        gradient_checkpointing=checkpointing,
        prepared=prepared,
        held_out=held_out,
        source_digest=source,
        attempts=attempts,
        slowest_save=max(saves, default=None),
    )
    status = record.row().status
    begun = attempts or past.attempts or facts
    return Stood(record, start, past, "interrupted" if status == "running" and begun else status, facts)
