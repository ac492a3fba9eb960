"""What a tracker is told of a run, made from its events: pure, and the same for every tracker.

The steps of a campaign are counted on from one of its runs to the next. A step that is done again after a fault is told of
again; who has it already is up to told.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from backpropagate import events
from backpropagate.events import Event
from backpropagate.judge.campaign import MERGED
from backpropagate.watch.view import RunView
from backpropagate.watch.wording import in_words
from backpropagate_protocol.redact import redact

Fact = str | int | float


@dataclass(frozen=True, slots=True)
class Values:
    """Points of curves, all of one step. `time`: seconds since 1970. Finite numbers only."""

    step: int
    time: float
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Note:
    """A line for people, without secrets."""

    step: int
    time: float
    text: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of the run by now, beside its settings. A later value of a name replaces an earlier one."""

    facts: Mapping[str, Fact]


@dataclass(frozen=True, slots=True)
class Ended:
    """One supervisor's last word. status: completed, failed, interrupted, partial. The run may be resumed after it."""

    status: str
    exit_code: int


Entry = Values | Note | Facts | Ended

# Said by curves or by facts, or too often for a list that people read.
_NO_NOTE = (events.PhaseEntered, events.Step, events.Evaluation, events.CheckpointCommitted)


@dataclass(slots=True)
class Telling:
    """Feed it every event of a run, in order; of a campaign, those of its runs, too."""

    _view: RunView = field(default_factory=RunView)
    _before: int = 0  # steps of the campaign's runs that are done
    _recoveries: int = 0

    def see(self, event: Event) -> list[Entry]:
        self._view.see(event)
        step = self._before + self._view.step
        entries = self._numbers(event, step)
        text = "" if isinstance(event, _NO_NOTE) else in_words(event)
        if text:
            entries.append(Note(step, event.time, redact(text)))
        if isinstance(event, events.RunEnded):
            entries += [_last_facts(event), Ended(event.status, event.exit_code)]
        return entries

    def _numbers(self, event: Event, step: int) -> list[Entry]:
        match event:
            case events.Step():
                return [self._values(event, step, self._of_step(event))]
            case events.Evaluation():
                scored = {"eval/loss": event.loss, "eval/seconds": event.seconds, **_under("eval", event.extra)}
                return [self._values(event, self._before + event.step, scored)]
            case events.CheckpointCommitted():
                values = {"run/checkpoint_seconds": event.seconds, "run/checkpoint_mib": event.bytes / 2**20}
                return [self._values(event, self._before + event.step, values)]
            case events.DataPrepared():
                rows = {"rows": event.rows, "tokens": event.tokens, "skipped": event.skipped}
                return [Facts({"data_format": event.format, "data_digest": event.digest, **_under("data", rows)})]
            case events.ModelReady():
                return [self._ready(event)]
            case events.Recovering():
                self._recoveries += 1
                return [self._values(event, step, {"run/recoveries": self._recoveries})]
            case events.LinkEnded():
                self._before += event.steps
                self._view.step = 0
                return []
            case events.LinkScored():
                return self._scored(event, step)
            case events.Exported():
                return [Facts({"export": event.path, "export_bytes": event.bytes})]
            case _:
                return []

    def _of_step(self, step: events.Step) -> dict[str, float | None]:
        view = self._view
        return {
            "train/loss": step.loss,
            "train/learning_rate": step.learning_rate,
            "train/grad_norm": step.grad_norm,
            "train/epoch": step.epoch,
            "train/samples": step.samples_seen,
            "train/step_seconds": step.step_seconds or None,
            "train/tokens_per_second": view.tokens_per_second,
            "gpu/memory_mib": step.memory_used or None,
            "gpu/celsius": step.celsius or None,
            "run/micro_batch": view.micro_batch or None,
            "run/attempt": view.attempt or None,
            **_under("train", step.extra),
        }

    def _ready(self, event: events.ModelReady) -> Facts:
        return Facts(
            {
                "backend": event.backend,
                "device": event.device,
                "precision": event.precision,
                "parameters": event.parameters,
                "trainable_parameters": event.trainable_parameters,
                "total_steps": event.total_steps,
            }
        )

    def _scored(self, event: events.LinkScored, step: int) -> list[Entry]:
        """The loss of what is merged, on each task that was taught so far."""
        scores = [score for score in event.scores if score.candidate == MERGED]
        values = {f"campaign/loss_run_{score.task + 1}": score.loss for score in scores}
        return [self._values(event, step, {**values, "campaign/run": event.link})]

    def _values(self, event: Event, step: int, values: Mapping[str, float | None]) -> Values:
        known = {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}
        return Values(step, event.time, known)


def _under(group: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{group}/{name}": value for name, value in values.items()}


def _last_facts(event: events.RunEnded) -> Facts:
    known: dict[str, Fact] = {"status": event.status, "steps": event.step, "seconds": event.seconds}
    if event.final_loss is not None and math.isfinite(event.final_loss):
        known["final_loss"] = event.final_loss
    if event.adapter:
        known["adapter"] = event.adapter
    if event.code:
        known["code"] = event.code
    return Facts(known)
