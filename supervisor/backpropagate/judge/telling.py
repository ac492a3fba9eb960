"""The policy's own words: its events, and the last words of a run. Pure; `driver` puts the time into an event."""

from __future__ import annotations

from backpropagate.events import (
    CardTrouble,
    DataPrepared,
    FaultSeen,
    Heat,
    MemoryAwaited,
    Noticed,
    Recovering,
    StopRequested,
)
from backpropagate.judge.decisions import Finish, Found, StopAsked
from backpropagate.judge.health import Finding
from backpropagate.judge.verdict import Cause, GiveUp
from backpropagate_protocol.catalogue import CATALOGUE, ExitCode
from backpropagate_protocol.errors import BackpropagateError
from backpropagate_protocol.jobs import PreparedRef
from backpropagate_protocol.messages import DataReady

BY_WISH = "RUNTIME_TRAINING_ABORTED"  # the code of a run that was stopped


class Telling:
    """Makes one run's events. `stage`: the one it is about, if it is not the training."""

    def __init__(self, run_id: str, stage: str = "") -> None:
        self._run_id, self._stage = run_id, stage

    def fault(self, cause: Cause, death: str = "") -> FaultSeen:
        return FaultSeen(
            time=0.0,
            run_id=self._run_id,
            attempt=cause.attempt,
            kind=cause.kind.value,
            code=cause.code,
            message=cause.message,
            step=cause.step,
            phase=cause.phase.value,
            death=death,
            traceback=cause.traceback,
            needed=cause.needed,
            free=cause.free,
            stage=self._stage,
        )

    def recovering(
        self, reason: str, delay: float, micro: int, accumulation: int, found: Found | None, last_step: int
    ) -> Recovering:
        resume_step = found.step if found else 0
        return Recovering(
            time=0.0,
            run_id=self._run_id,
            reason=reason,
            delay=delay,
            micro_batch=micro,
            accumulation=accumulation,
            checkpoint=found.name if found else None,
            resume_step=resume_step,
            steps_lost=max(0, last_step - resume_step),
            stage=self._stage,
        )

    def memory_awaited(self, memory: int, holders: str, seconds: float) -> MemoryAwaited:
        return MemoryAwaited(time=0.0, run_id=self._run_id, holders=holders, memory=memory, seconds=seconds)

    def card(self, finding: Finding) -> CardTrouble:
        return CardTrouble(
            time=0.0,
            run_id=self._run_id,
            source=finding.source,
            code=finding.code,
            text=finding.text,
            deed=finding.deed.value,
            advice=finding.advice,
        )

    def heat(self, level: str, celsius: int) -> Heat:
        return Heat(time=0.0, run_id=self._run_id, level=level, celsius=celsius)

    def stop(self, reason: str, *, save: bool, seconds: float = 0.0) -> StopRequested:
        return StopRequested(time=0.0, run_id=self._run_id, reason=reason, save=save, seconds=round(seconds, 1))

    def unreadable(self, why: str, delay: float) -> Noticed:
        text = f"the checkpoints cannot be read ({why}); tried again in {delay:g} s"
        return Noticed(time=0.0, run_id=self._run_id, level="warning", text=text)

    def blind(self, why: str) -> Noticed:
        text = f"the GPU's sensors cannot be read ({why}); the run goes on without them"
        return Noticed(time=0.0, run_id=self._run_id, level="warning", text=text)


def held_out(ready: DataReady | DataPrepared) -> PreparedRef | None:
    """The rows that are scored while it trains, if there are any."""
    return PreparedRef(ready.held_out_path, ready.held_out_digest) if ready.held_out_path else None


def completed() -> Finish:
    return Finish("completed", ExitCode.DONE)


def gave_up(verdict: GiveUp) -> Finish:
    return Finish(verdict.status, verdict.exit_code, verdict.code, verdict.message, verdict.suggestion)


def refused(error: BackpropagateError) -> Finish:
    later = error.exit_code is ExitCode.TRY_LATER
    return Finish("interrupted" if later else "failed", error.exit_code, error.code, error.message, error.suggestion)


def unreadable_adapter(folder: str, why: str) -> Finish:
    info = CATALOGUE["RUNTIME_DISK_FULL"]
    text = f"the adapter in {folder} cannot be read: {why}"
    return Finish("interrupted", info.exit, info.code, text, "Look after the disk, then `backprop resume RUN`.")


def stopped(asked: StopAsked, kept: Found | None) -> Finish:
    info = CATALOGUE[BY_WISH]
    what = f"step {kept.step} is kept" if kept else "nothing was saved yet"
    return Finish("interrupted", asked.exit_code, info.code, f"stopped by {asked.reason}; {what}", info.remedy)


def stopped_in(stage: str, asked: StopAsked) -> Finish:
    return Finish("interrupted", asked.exit_code, BY_WISH, f"stopped by {asked.reason} in {stage}", "`backprop resume RUN` goes on with this stage.")  # fmt: skip


def unkillable() -> Finish:
    info = CATALOGUE["RUNTIME_GPU_LOST"]
    return Finish(
        "failed", info.exit, info.code, "the training process cannot be killed: the driver holds it", info.remedy
    )


def memory_held(holders: str, minutes: float) -> Finish:
    info = CATALOGUE["STATE_BUSY"]
    text = f"the GPU's memory is still held by {holders} after {minutes:.0f} minutes"
    remedy = "End them, or wait until they are done; then `backprop resume RUN`."
    return Finish("interrupted", info.exit, info.code, text, remedy)


def still_hot(celsius: int, minutes: float) -> Finish:
    info = CATALOGUE["RUNTIME_GPU_TEMPERATURE_CRITICAL"]
    text = f"the GPU is still at {celsius} °C after {minutes:.0f} minutes of rest"
    return Finish("interrupted", info.exit, info.code, text, info.remedy)
