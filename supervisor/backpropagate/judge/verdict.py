"""What is to be done about a fault: one function from cause and history to a verdict. Pure.

A cause is what ended an attempt. The order of the rules matters: what can never succeed comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from backpropagate.judge.decisions import Death
from backpropagate.judge.halving import halved
from backpropagate.judge.states import BEFORE_TRAINING
from backpropagate_protocol.catalogue import CATALOGUE, ExitCode
from backpropagate_protocol.messages import Fault, Phase


class Kind(StrEnum):
    """Why an attempt ended: the child's own FaultKinds, and what only the parent can see."""

    OOM = "oom"
    HOST_OOM = "host_oom"
    CUDA = "cuda"
    GPU_LOST = "gpu_lost"
    GPU_BUSY = "gpu_busy"
    DIVERGED = "diverged"
    DISK = "disk"
    USER = "user"
    CHECKPOINT = "checkpoint"
    INTERNAL = "internal"
    DIED = "died"
    HANG = "hang"
    OVERHEAT = "overheat"
    PROTOCOL = "protocol"
    MISMATCH = "mismatch"  # the child is not the one that was asked for: another version, another batch


@dataclass(frozen=True, slots=True)
class Cause:
    """What ended an attempt. `trained`: it had completed at least one step of its own."""

    kind: Kind
    code: str
    message: str
    step: int = 0
    attempt: int = 0
    suggestion: str = ""
    traceback: str = ""
    needed: int = 0
    free: int = 0
    trained: bool = False
    phase: Phase = Phase.TRAIN
    others: int = 0  # MiB that other processes took since the training began
    xid: int = 0  # the driver's number for it, if it reported one


def reported(fault: Fault, attempt: int, trained: bool) -> Cause:
    """The cause that a child named itself."""
    return Cause(
        kind=Kind(fault.kind.value),
        code=fault.code,
        message=fault.message,
        step=fault.step,
        attempt=attempt,
        suggestion=fault.suggestion,
        traceback=fault.traceback,
        needed=fault.needed,
        free=fault.free,
        trained=trained,
        phase=fault.phase,
        others=fault.others,
    )


def of_death(death: Death, *, mute: bool, who: str) -> tuple[Kind, str, str]:
    """Kind, code and message for a child that died unexplained. `mute`: the run's first, and it never said a word."""
    if death.host_oom:
        return Kind.HOST_OOM, "RUNTIME_HOST_OOM", f"{who} {death.text}"
    if death.device_oom:
        return Kind.OOM, "RUNTIME_GPU_OOM", f"{who} {death.text}"
    if mute and (death.code is None or death.code >= 0):
        # What it needs is not there, and will not be there next time.
        return Kind.MISMATCH, "DEP_RUNNER_MISSING", f"the runner {death.text} before it said anything"
    return Kind.DIED, "RUNTIME_CHILD_DIED", f"{who} {death.text}"


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the run stands when a cause is judged. `earlier`: the causes before it, oldest first.

    loaded: this machine has held the model before. resuming: there is a checkpoint to read.
    fruitless: those of `earlier` that came after the newest checkpoint.
    """

    micro: int
    effective: int
    halvings: int
    respawns: int  # since the last newly committed step
    checkpointing_can_help: bool  # gradient checkpointing is off, or not known to be on
    loaded: bool = False
    resuming: bool = False
    earlier: Sequence[Cause] = ()
    fruitless: Sequence[Cause] = ()


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings that the verdict depends on."""

    oom_recovery: bool
    max_halvings: int
    max_respawns: int
    least_batch: int = 1  # of the method


@dataclass(frozen=True, slots=True)
class Again:
    """Respawn. `counts` against the budget of respawns without progress; `halving` against that of halvings."""

    micro: int
    counts: bool
    halving: bool = False
    gradient_checkpointing: bool = False  # turn it on
    cool_first: bool = False


@dataclass(frozen=True, slots=True)
class GiveUp:
    exit_code: ExitCode
    code: str
    message: str
    suggestion: str = ""

    @property
    def status(self) -> str:
        return "interrupted" if self.exit_code in (ExitCode.TRY_LATER, ExitCode.INTERRUPTED) else "failed"


Verdict = Again | GiveUp


def judge(cause: Cause, at: Standing, rules: Rules) -> Verdict:
    """The verdict. Does not change anything."""
    match cause.kind:
        case Kind.USER | Kind.DIVERGED | Kind.GPU_LOST | Kind.MISMATCH:
            return _give_up(cause)
        case Kind.DISK:
            # A checkpoint that the child could not read may be readable in a moment; what cannot be written is no such hope.
            return _budgeted(cause, at, rules) if at.resuming and cause.phase in BEFORE_TRAINING else _give_up(cause)
        case Kind.OOM:
            return _out_of_memory(cause, at, rules)
        case Kind.HOST_OOM:
            if cause.phase in BEFORE_TRAINING:
                # A smaller batch needs no less at this point; but others on the machine may have needed it just then.
                return _twice(cause, at) or _budgeted(cause, at, rules)
            smaller = _smaller(at, rules)
            return Again(smaller, counts=False, halving=True) if smaller else _give_up(cause)
        case Kind.CUDA:
            # With a number of the driver's it is known to be no want of memory.
            return _twice(cause, at) or _budgeted(cause, at, rules, None if cause.xid else _smaller(at, rules))
        case Kind.OVERHEAT:
            return _budgeted(cause, at, rules, halved(at.micro, at.effective, rules.least_batch), cool_first=True)
        case Kind.INTERNAL:
            return _twice(cause, at) or _budgeted(cause, at, rules)
        case Kind.DIED:
            # An attempt that was killed before its first step tells nothing about the step, unless the driver knows why.
            return (_twice(cause, at) if cause.trained or cause.xid else None) or _budgeted(cause, at, rules)
        case Kind.HANG | Kind.PROTOCOL | Kind.GPU_BUSY | Kind.CHECKPOINT:
            return _budgeted(cause, at, rules)
        case _:
            assert_never(cause.kind)


def _give_up(cause: Cause, message: str = "", code: str = "") -> GiveUp:
    info = CATALOGUE.get(code or cause.code, CATALOGUE["RUNTIME_INTERNAL"])
    return GiveUp(
        info.exit, info.code, message or cause.message, info.remedy if code else cause.suggestion or info.remedy
    )


def _smaller(at: Standing, rules: Rules) -> int | None:
    return halved(at.micro, at.effective, rules.least_batch) if at.halvings < rules.max_halvings else None


def _out_of_memory(cause: Cause, at: Standing, rules: Rules) -> Verdict:
    amounts = [f"{cause.needed} MiB were asked for"] if cause.needed else []
    amounts += [f"{cause.free} MiB were free"] if cause.free else []
    figures = "".join(f"; {text}" for text in amounts)
    if cause.phase in BEFORE_TRAINING:
        if at.loaded and rules.oom_recovery:
            return _budgeted(cause, at, rules)  # it did fit: somebody else has the memory at this moment
        return _give_up(cause, f"the model itself does not fit into the GPU's memory{figures}")
    if cause.phase is Phase.EVALUATE and rules.oom_recovery:
        return _budgeted(cause, at, rules)  # the training fits; the scoring went down to single rows by itself
    if rules.oom_recovery:
        smaller = _smaller(at, rules)
        if smaller is not None:
            return Again(smaller, counts=False, halving=True)
        if halved(at.micro, at.effective, rules.least_batch) is None and at.checkpointing_can_help:
            return Again(at.micro, counts=False, gradient_checkpointing=True)
    tried = (
        f"with a micro-batch of {at.micro} after {at.halvings} halvings"
        if rules.oom_recovery
        else f"with a micro-batch of {at.micro}; recovery is turned off"
    )
    return _give_up(cause, f"the GPU is out of memory {tried}{figures}")


def _twice(cause: Cause, at: Standing) -> GiveUp | None:
    for earlier in at.earlier:
        alike = earlier.kind is cause.kind or (cause.xid and earlier.xid == cause.xid)
        if alike and earlier.step == cause.step:
            return _give_up(earlier, f"the same fault came twice at step {cause.step}: {earlier.message}")
    return None


def _budgeted(
    cause: Cause, at: Standing, rules: Rules, smaller: int | None = None, *, cool_first: bool = False
) -> Verdict:
    if at.respawns < rules.max_respawns:
        micro = smaller or at.micro
        return Again(micro, counts=True, halving=smaller is not None and not cool_first, cool_first=cool_first)
    if cause.kind in (Kind.OVERHEAT, Kind.GPU_BUSY, Kind.OOM, Kind.DISK):
        return _give_up(cause)
    causes = [*at.fruitless, cause]
    listed = "; ".join(f"attempt {c.attempt}: {c.message} (step {c.step})" for c in causes)
    return _give_up(cause, f"{len(causes)} attempts without progress. {listed}", "RUNTIME_CRASH_LOOP")
