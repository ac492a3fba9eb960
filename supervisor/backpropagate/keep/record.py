"""Events of one run, folded into its row of the history. The live supervisor and a rebuild use the same fold."""

from __future__ import annotations

import math
import time
from typing import assert_never

import msgspec

from backpropagate.events import (
    AttemptStarted,
    BatchHalved,
    CardTrouble,
    CheckpointCommitted,
    DataPrepared,
    Event,
    Exported,
    ExportProved,
    FaultSeen,
    ModelReady,
    Noticed,
    Recovering,
    RunCreated,
    RunEnded,
    RunResumed,
    StageEnded,
    StageStarted,
    Step,
)
from backpropagate.judge.held_out import Scores
from backpropagate.keep import campaign_row
from backpropagate.keep.campaign_row import CampaignEvent
from backpropagate.keep.hyperparameters import as_it_came_to, hyperparameters
from backpropagate.keep.supervised import Supervised
from backpropagate_protocol.rundir import RunDir
from backpropagate_protocol.spec import RunSpec

LOSS_POINTS = 200
WARNINGS = 20


class RunRow(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `run_history.json`. Times are ISO 8601 in UTC, durations are seconds. Fields only grow."""

    run_id: str
    name: str | None = None
    status: str = "running"  # running, completed, failed, interrupted, partial
    session_kind: str = "single_run"  # or: multi_run (a campaign), export, push
    model_name: str = ""
    dataset_info: str = ""
    dataset_digest: str = ""
    hyperparameters: dict[str, object] = {}
    started_at: str = ""
    completed_at: str | None = None
    duration_seconds: float = 0.0  # of supervision, of all supervisors; the time between them does not count
    steps: int = 0
    total_steps: int = 0
    final_loss: float | None = None
    loss_history: list[tuple[int, float]] = []
    samples_seen: int = 0
    order: int = 0
    checkpoint_path: str | None = None
    adapter_path: str | None = None
    backend: str = ""
    device: str = ""
    gpu_uuid: str = ""
    micro_batch_history: list[tuple[int, int]] = []  # (step, micro-batch from there on)
    faults: list[dict[str, object]] = []
    gpu_troubles: list[dict[str, object]] = []  # what the card and its driver reported: code, text, what followed
    warnings: list[str] = []  # each once, the newest of them
    recoveries: int = 0
    packages: dict[str, str] = {}
    exit_code: int | None = None
    code: str | None = None
    failure_reason: str | None = None
    export_paths: list[str] = []
    ollama_name: str | None = None
    url: str | None = None  # where it was pushed to
    proof: dict[str, object] = {}  # passed, verifier, prompts, positions, and value by check
    stages: list[dict[str, object]] = []  # that are done, besides the training, each with seconds and bytes
    parent: str | None = None  # the campaign that this training is a run of
    link: int = 0  # which of its runs, from 1
    runs: list[dict[str, object]] = []  # of a campaign: each with link, run_id, name, steps, loss, coefficient, scores
    eval_history: list[tuple[int, float]] = []  # (step, loss of the held-out rows)
    best_step: int = 0  # the one with the lowest of them
    best_loss: float | None = None
    stopped_early: bool = False  # they said that it is enough
    schema_version: str = "1.0"


def iso(seconds: float) -> str:
    """Seconds since 1970 as ISO 8601 in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


_KINDS = {"campaign": "multi_run", "export": "export", "push": "push"}


class Record:
    """What is known of one run so far. Feed it every event, in order; `row()` at any time."""

    def __init__(self, spec: RunSpec, run_dir: RunDir) -> None:
        self._run_dir = run_dir
        self._row = RunRow(
            run_id=spec.run_id,
            name=spec.name,
            session_kind=_KINDS.get(spec.kind, "single_run"),
            model_name=spec.model.name,
            dataset_info=spec.data.source,
            hyperparameters=hyperparameters(spec),
            started_at=spec.created,
            backend=spec.backend,
            parent=spec.parent,
            link=spec.link,
        )
        self._losses: list[tuple[int, float]] = []
        self._stride = 1
        self._scores = Scores()
        self._supervised = Supervised()
        self._last: Step | None = None

    def row(self) -> RunRow:
        row = self._row
        step = self._last
        if step is not None and row.status == "running":  # one that ended says itself how far what it kept has come
            row = msgspec.structs.replace(
                row, steps=step.step, total_steps=step.total_steps, samples_seen=step.samples_seen, order=step.order
            )
        losses = list(self._losses)
        if step is not None and finite(step.loss) is not None and (not losses or losses[-1][0] < step.step):
            losses.append((step.step, finite(step.loss) or 0.0))
        best_step, best_loss = self._scores.best or (0, None)
        return msgspec.structs.replace(
            row,
            loss_history=losses,
            eval_history=_thinned(self._scores.points, best_step),
            best_step=best_step,
            best_loss=best_loss,
            duration_seconds=self._supervised.seconds,
        )

    def fold(self, event: Event) -> None:
        """Takes one event into account; events that say nothing about the row are passed over."""
        row = self._row
        self._scores.see(event)
        self._supervised.see(event)
        if isinstance(event, Step):
            self._step(event)
            return
        if isinstance(event, RunCreated | RunResumed):
            row = msgspec.structs.replace(
                row, status="running", completed_at=None, exit_code=None, code=None, failure_reason=None
            )
            if isinstance(event, RunCreated):
                row = msgspec.structs.replace(row, started_at=iso(event.time), packages=event.versions)
        elif isinstance(event, AttemptStarted):
            sizes = row.micro_batch_history
            if not sizes or sizes[-1][1] != event.micro_batch:
                sizes = [*sizes, (event.resume_step, event.micro_batch)]
            row = msgspec.structs.replace(row, micro_batch_history=sizes, packages={**row.packages, **event.versions})
            row = msgspec.structs.replace(row, hyperparameters=as_it_came_to(row.hyperparameters, event))
            self._forget_after(event.resume_step)
        elif isinstance(event, BatchHalved):
            sizes = [*row.micro_batch_history, (max(0, event.step - 1), event.micro_batch)]
            row = msgspec.structs.replace(row, micro_batch_history=sizes)
        elif isinstance(event, DataPrepared):
            row = msgspec.structs.replace(row, dataset_digest=event.source_digest or event.digest)
        elif isinstance(event, ModelReady):
            row = msgspec.structs.replace(
                row,
                backend=event.backend,
                device=event.device,
                gpu_uuid=event.gpu_uuid,
                total_steps=event.total_steps,
                hyperparameters=as_it_came_to(row.hyperparameters, event),
            )
        elif isinstance(event, CheckpointCommitted):
            row = msgspec.structs.replace(row, checkpoint_path=str(self._run_dir.checkpoints / event.name))
        elif isinstance(event, FaultSeen):
            fault: dict[str, object] = {
                "attempt": event.attempt,
                "kind": event.kind,
                "code": event.code,
                "message": event.message,
                "step": event.step,
            }
            row = msgspec.structs.replace(row, faults=[*row.faults, fault][-50:])
        elif isinstance(event, CardTrouble):
            trouble: dict[str, object] = {"code": event.code, "text": event.text, "deed": event.deed}
            row = msgspec.structs.replace(row, gpu_troubles=[*row.gpu_troubles, trouble][-50:])
        elif isinstance(event, Noticed) and event.level == "warning":
            if event.text not in row.warnings:
                row = msgspec.structs.replace(row, warnings=[*row.warnings, event.text][-WARNINGS:])
        elif isinstance(event, Recovering):
            row = msgspec.structs.replace(row, recoveries=row.recoveries + 1)
        elif isinstance(event, StageStarted | StageEnded | ExportProved | Exported):
            row = _staged(row, event)
        elif isinstance(event, CampaignEvent):
            row = campaign_row.with_event(row, event)
            self._losses = campaign_row.losses(row)
        elif isinstance(event, RunEnded):
            row = self._ended(event)
        self._row = row

    def _step(self, event: Step) -> None:
        self._last = event
        loss = finite(event.loss)
        if loss is None or event.step % self._stride:
            return
        self._losses.append((event.step, loss))
        if len(self._losses) >= LOSS_POINTS:
            self._stride *= 2
            self._losses = [point for point in self._losses if point[0] % self._stride == 0]

    def _forget_after(self, step: int) -> None:
        """An attempt begins again at `step`: what was measured after it is measured anew."""
        self._losses = [point for point in self._losses if point[0] <= step]
        if self._last is not None and self._last.step > step:
            self._last = None

    def _ended(self, event: RunEnded) -> RunRow:
        return msgspec.structs.replace(
            self.row(),
            status=event.status,
            completed_at=iso(event.time),
            steps=event.step,
            total_steps=event.total_steps or self._row.total_steps,
            final_loss=finite(event.final_loss),
            samples_seen=event.samples_seen,
            order=event.order,
            adapter_path=event.adapter,
            ollama_name=event.ollama or self._row.ollama_name,
            url=event.url or self._row.url,
            exit_code=event.exit_code,
            code=event.code,
            failure_reason=event.message or None if event.exit_code else None,
            stopped_early=event.stopped_early,
        )


def _thinned(points: list[tuple[int, float]], best_step: int) -> list[tuple[int, float]]:
    """At most so many as of the other losses, the last and the best among them."""
    stride = -(-len(points) // (LOSS_POINTS - 2)) or 1
    last = points[-1][0] if points else 0
    return [point for at, point in enumerate(points) if at % stride == 0 or point[0] in (best_step, last)]


def _staged(row: RunRow, event: StageStarted | StageEnded | ExportProved | Exported) -> RunRow:
    match event:
        case StageStarted():
            return msgspec.structs.replace(row, packages={**row.packages, **event.versions})
        case StageEnded(stage="train"):
            return row
        case StageEnded():
            done: dict[str, object] = {"stage": event.stage, "seconds": event.seconds, "bytes": event.bytes}
            stages = [stage for stage in row.stages if stage["stage"] != event.stage]
            return msgspec.structs.replace(row, stages=[*stages, done])
        case ExportProved():
            told: dict[str, object] = {
                "passed": event.passed,
                "verifier": event.verifier,
                "prompts": event.prompts,
                "positions": event.positions,
            }
            measured = {c.name: c.passed if finite(c.value) is None else c.value for c in event.checks}
            return msgspec.structs.replace(row, proof={**told, **measured})
        case Exported():
            paths = [path for path in row.export_paths if path != event.path]
            return msgspec.structs.replace(row, export_paths=[*paths, event.path])
        case _:
            assert_never(event)


def finite(value: float | None) -> float | None:
    """None for what JSON cannot say."""
    return value if value is not None and math.isfinite(value) else None
