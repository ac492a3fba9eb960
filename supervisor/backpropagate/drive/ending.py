"""How a run ended, from what was decided about it and what is kept of it: for who asked for the run, and for its journal."""

from __future__ import annotations

import time

import msgspec

from backpropagate.drive.training import Kept
from backpropagate.events import RunEnded
from backpropagate.judge.decisions import Finish
from backpropagate.outcome import Outcome
from backpropagate_protocol.redact import redact


def outcome_of(run_id: str, finish: Finish, kept: Kept, recoveries: int) -> Outcome:
    """Without what comes after a training."""
    return Outcome(
        run_id=run_id,
        status=finish.status,
        exit_code=int(finish.exit_code),
        code=finish.code,
        message=redact(finish.message),
        suggestion=finish.suggestion,
        step=kept.step,
        total_steps=kept.total_steps,
        adapter=kept.adapter,
        final_loss=kept.loss,
        samples_seen=kept.samples_seen,
        order=kept.order,
        best_step=kept.best_step,
        stopped_early=kept.stopped_early,
        recoveries=recoveries,
    )


def run_ended(outcome: Outcome, kind: str, began: float, earlier: float = 0.0) -> RunEnded:
    """The last line of this supervisor's journal. `began`: its time on the monotonic clock; `earlier`: seconds of those before."""
    told = {name: value for name, value in msgspec.structs.asdict(outcome).items() if name != "recoveries"}
    seconds = round(time.monotonic() - began, 3)
    return RunEnded(time=time.time(), kind=kind, seconds=seconds, earlier=earlier, **told)
