"""What a drill puts a run through: for each row the fault, and how a run that met it has to end. Pure.

A toy's run has 30 steps and a checkpoint at every fifth; a real one 9 and a checkpoint at every second. Both meet their faults
between two checkpoints.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from backpropagate_protocol.spec import PlannedFault


class Blow(Enum):
    """What is done to the supervisor itself or to its card, from outside."""

    KILL = auto()
    STOP = auto()  # its owner asks
    LEAVE = auto()  # its owner is gone
    TERMINATE = auto()
    FREEZE = auto()  # for a while
    CARD = auto()  # its card falls ill
    RIVAL = auto()  # another one wants its output folder; then its owner asks it to stop


class End(Enum):
    """How a run that met the fault has to end."""

    RECOVERED = auto()  # by a child that took over, or by the same child in smaller pieces
    UNMOVED = auto()  # no child was lost
    RESUMED = auto()  # by the next supervisor
    GIVEN_UP = auto()  # nothing can help; what is kept is good


@dataclass(frozen=True, slots=True)
class Pace:
    """The shape of every run of a drill, and where in it faults fall."""

    steps: int
    save_steps: int
    batch: int
    at: int  # the step before which a fault comes
    saved: int  # the newest checkpoint there
    hang_floor: float  # where the fault is a hang


@dataclass(frozen=True, slots=True)
class Row:
    """`code`: of the fault that has to be seen, or with which the run has to end; empty where none is."""

    key: str
    name: str
    faults: tuple[PlannedFault, ...] = ()
    end: End = End.RECOVERED
    code: str = ""
    blow: Blow | None = None
    hangs: bool = False
    slow: bool = False  # its steps take time, so that something can happen meanwhile
    standby: bool = False
    halves: bool = False  # the micro-batch; elsewhere it must not
    celsius: tuple[int, ...] = ()  # what its played card has from the blow on, reading by reading; the last one stays
    heat: str = ""  # what is done about that: pause, kill
    xid: int = 0  # the error number that its driver tells then
    quick: bool = False  # part of `--quick`


TOY = Pace(steps=30, save_steps=5, batch=8, at=12, saved=10, hang_floor=1.5)
REAL = Pace(steps=9, save_steps=2, batch=4, at=6, saved=4, hang_floor=15.0)

_OOM, _HOST_OOM, _GPU = "RUNTIME_GPU_OOM", "RUNTIME_HOST_OOM", "RUNTIME_GPU_ERROR"
_DIED, _HANG, _FAILED = "RUNTIME_CHILD_DIED", "RUNTIME_HANG", "RUNTIME_TRAINING_FAILED"
_HOT = "RUNTIME_GPU_TEMPERATURE_CRITICAL"
_DISK, _STOPPED = "RUNTIME_DISK_FULL", "RUNTIME_TRAINING_ABORTED"


def toy_rows(*, quick: bool) -> Sequence[Row]:
    """All that can be played without a card, but for what a system does not have."""
    at, saved = TOY.at, TOY.saved
    held = (PlannedFault("hold", at),)
    rows = [
        Row("oom", "GPU out of memory", _once("oom"), code=_OOM, halves=True, quick=True),
        Row("oom_in_backward", "GPU out of memory, given back", _once("oom_in_backward"), code=_OOM, halves=True),
        Row("oom_in_optimizer", "GPU out of memory in the optimizer", _once("oom_in_optimizer"), code=_OOM, halves=True),
        Row("oom_in_evaluation", "GPU out of memory in an evaluation", _once("oom_in_evaluation"), code=_OOM),
        Row("sigkill_in_evaluation", "child killed in an evaluation", _once("sigkill_in_evaluation"), code=_DIED),
        Row("cuda_fault", "CUDA fault", _once("cuda_fault"), code=_GPU, halves=True),
        Row("host_oom", "machine out of memory", _once("host_oom"), code=_HOST_OOM, halves=True),
        Row("sigkill", "child killed (kill -9)", _once("sigkill"), code=_DIED, quick=True),
        Row("segfault", "child crashed", _once("segfault"), code=_DIED),
        Row("abort", "child aborted", _once("abort"), code=_DIED),
        Row("exit0", "child gone without a word", _once("exit0"), code=_DIED),
        Row("error", "exception in training", _once("error"), code=_FAILED),
        Row("hang", "hang", _once("hang"), code=_HANG, hangs=True, quick=True),
        Row("hang_gil", "hang in C code", _once("hang_gil"), code=_HANG, hangs=True),
        Row("garbage", "garbage in the pipe", _once("garbage"), code="RUNTIME_PROTOCOL"),
        Row("print_noise", "libraries print", _once("print_noise"), End.UNMOVED),
        Row("flood", "100,000 messages at once", _once("flood"), End.UNMOVED),
        Row("killed_again", "killed, and the next child while it loads", (PlannedFault("sigkill", at), PlannedFault("sigkill", 0, 2)), code=_DIED),
        Row("standby", "child killed, a standby takes over", _once("sigkill"), code=_DIED, slow=True, standby=True),
        Row("sigkill_in_save", "child killed in a save", (PlannedFault("sigkill_in_save", saved),), code=_DIED, quick=True),
        Row("sigkill_before_manifest", "child killed between files of a save", (PlannedFault("sigkill_before_manifest", saved),), code=_DIED),
        Row("torn_save", "torn checkpoint", (PlannedFault("torn_save", saved), PlannedFault("sigkill", at)), code=_DIED, quick=True),
        Row("bitflip_save", "one wrong bit in a checkpoint", (PlannedFault("bitflip_save", saved), PlannedFault("sigkill", at)), code=_DIED),
        Row("disk_full", "disk full in a save", (PlannedFault("disk_full", saved),), End.UNMOVED, _DISK, quick=True),
        Row("disk_error", "disk error in a save", (PlannedFault("disk_error", saved),), End.UNMOVED, _DISK),
        Row("nan", "loss that is no number", _once("nan"), End.GIVEN_UP, "RUNTIME_LOSS_DIVERGED"),
        Row("device_lost", "GPU lost", _once("device_lost"), End.GIVEN_UP, "RUNTIME_GPU_LOST"),
        Row("hot", "GPU too hot (played)", held, code=_HOT, blow=Blow.CARD, celsius=(91, 91, 91, 70), heat="pause", halves=True),
        Row("critical", "GPU far too hot (played)", held, code=_HOT, blow=Blow.CARD, celsius=(96, 96, 70), heat="kill", halves=True),
        Row("off_the_bus", "GPU fallen off the bus, Xid 79 (played)", held, End.GIVEN_UP, "RUNTIME_GPU_LOST", Blow.CARD, celsius=(60,), xid=79),
        Row("twice", "the same fault twice", (PlannedFault("error", at, 0),), End.GIVEN_UP, _FAILED),
        Row("killed_supervisor", "supervisor killed (kill -9)", held, End.RESUMED, blow=Blow.KILL, quick=True),
        Row("killed_supervisor_gil", "the same, its child in C code", _once("hang_gil"), End.RESUMED, blow=Blow.KILL),
        Row("stop", "asked to stop", held, End.RESUMED, _STOPPED, Blow.STOP, quick=True),
        Row("owner_gone", "script or notebook gone", held, End.RESUMED, _STOPPED, Blow.LEAVE),
        Row("rival", "second run in the same folder", held, End.RESUMED, _STOPPED, Blow.RIVAL),
    ]  # fmt: skip
    if sys.platform != "win32":
        rows += [
            Row("sigstop", "child stopped", _once("sigstop"), code=_HANG, hangs=True),
            Row("sigterm", "supervisor asked to end (SIGTERM)", held, End.RESUMED, _STOPPED, Blow.TERMINATE),
            Row("frozen", "supervisor stopped for a while", (), End.UNMOVED, blow=Blow.FREEZE, slow=True),
        ]
    return [row for row in rows if row.quick or not quick]


def real_rows(*, quick: bool) -> Sequence[Row]:
    """The same on a real training; each costs a load of the model, or two."""
    at, saved = REAL.at, REAL.saved
    rows = [
        Row("real_oom", "GPU out of memory", (PlannedFault("oom", at),), code=_OOM, halves=True, quick=True),
        Row("real_oom_in_backward", "GPU out of memory, given back", (PlannedFault("oom_in_backward", at),), code=_OOM, halves=True),
        Row("real_sigkill", "child killed (kill -9)", (PlannedFault("sigkill", at),), code=_DIED, quick=True),
        Row("real_hang", "hang in C code", (PlannedFault("hang_gil", at),), code=_HANG, hangs=True),
        Row("real_torn_save", "torn checkpoint", (PlannedFault("torn_save", saved), PlannedFault("sigkill", at)), code=_DIED),
        Row("real_killed_supervisor", "supervisor killed (kill -9)", (PlannedFault("hold", at),), End.RESUMED, blow=Blow.KILL),
    ]  # fmt: skip
    return [row for row in rows if row.quick or not quick]


def _once(kind: str) -> tuple[PlannedFault, ...]:
    return (PlannedFault(kind, TOY.at),)
