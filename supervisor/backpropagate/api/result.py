"""TrainingRun: what a finished (or interrupted) training gives back, made from the run's events."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from backpropagate import events
from backpropagate.api.export_result import Export, ExportSummary
from backpropagate.events import Event
from backpropagate.keep.supervised import Supervised
from backpropagate.watch.view import RunView, sparkline
from backpropagate_protocol.rundir import RunDir


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRun:
    """One run as it ended.

    run_id            its id; any unique prefix is enough in every command
    status            `completed`, `interrupted` (resumable), or `partial`
    steps             optimizer steps that were done; total_steps: those that were asked for
    loss_history      the losses that were reported, in order: of every step, but for very fast and very long runs
    loss_steps        the step of each point of loss_history
    adapter_path      the trained adapter in PEFT layout, or None; output_path: the run's folder
    recoveries        in words, one for each fault that was recovered from; recovery_count: how many (in --json documents,
                      `recovered` and `recoveries`)
    duration_seconds  of supervision, by all supervisors that it had; the time between them does not count
    eval_losses       of the held-out rows, in order; eval_steps: the step of each
    best_loss         the lowest of them; best_step: its step. With keep_best the adapter has the weights of that step
    stopped_early     whether these losses ended the training
    export            what was made of the adapter in the same run, or None: `trainer.export(...)` makes something of it later
    callback_error    the callback that raised, and was not called again from there on, in words; empty if none did
    """

    run_id: str
    status: str
    steps: int
    total_steps: int
    final_loss: float | None
    loss_history: list[float]
    loss_steps: list[int]
    adapter_path: Path | None
    output_path: Path
    recoveries: list[str] = field(default_factory=list)
    duration_seconds: float = 0.0
    samples_seen: int = 0
    export: Export | None = None
    eval_losses: list[float] = field(default_factory=list)
    eval_steps: list[int] = field(default_factory=list)
    best_loss: float | None = None
    best_step: int = 0
    stopped_early: bool = False
    callback_error: str = ""

    @property
    def completed(self) -> bool:
        return self.status == "completed"

    @property
    def recovery_count(self) -> int:
        return len(self.recoveries)

    def __str__(self) -> str:
        loss = "" if self.final_loss is None else f", loss {self.final_loss:.4f} {sparkline(self.loss_history)}"
        held_out = "" if self.best_loss is None else f", held-out loss {self.best_loss:.4f} at step {self.best_step}"
        again = f", recovered from {len(self.recoveries)} faults" if self.recoveries else ""
        return f"run {self.run_id[:8]} {self.status}: {self.steps}/{self.total_steps} steps{loss}{held_out}{again}"


class Summary:
    """Folds a run's events, of all its supervisors, into a TrainingRun."""

    def __init__(self, run_dir: RunDir) -> None:
        self._run_dir = run_dir
        self.view = RunView(run_id=run_dir.run_id)
        self._losses: dict[int, float] = {}
        self._samples = 0
        self._supervised = Supervised()
        self._exported = ExportSummary(run_dir)

    def event(self, event: Event) -> None:
        self.view.see(event)
        self._supervised.see(event)
        self._exported.event(event)
        if isinstance(event, events.Step):
            self._samples = event.samples_seen
            if event.loss is not None:
                self._losses[event.step] = event.loss
        elif isinstance(event, events.AttemptStarted):
            self._losses = {step: loss for step, loss in self._losses.items() if step <= event.resume_step}

    def close(self) -> None:
        pass

    def run(self) -> TrainingRun:
        """After RunEnded."""
        ended = self.view.ended
        assert ended is not None
        scores = self.view.scores
        best_step, best_loss = scores.best or (0, None)
        return TrainingRun(
            run_id=self._run_dir.run_id,
            status=ended.status,
            steps=ended.step,
            total_steps=ended.total_steps,
            final_loss=ended.final_loss,
            loss_history=list(self._losses.values()),
            loss_steps=list(self._losses),
            adapter_path=Path(ended.adapter) if ended.adapter else None,
            output_path=self._run_dir.path,
            recoveries=list(self.view.recoveries),
            duration_seconds=self._supervised.seconds,
            samples_seen=ended.samples_seen or self._samples,
            export=self._exported.export,
            eval_losses=[loss for _, loss in scores.points],
            eval_steps=[step for step, _ in scores.points],
            best_loss=best_loss,
            best_step=best_step,
            stopped_early=ended.stopped_early,
        )
