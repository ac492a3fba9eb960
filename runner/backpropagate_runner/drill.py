"""Faults on purpose, at an exact step of any backend: the body of every test of recovery, and of `backprop drill`.

A PlannedFault names a kind from KINDS. Kinds of STEP happen before that optimizer step (step 0: before the model is
loaded); kinds of SAVE happen while the checkpoint of that step is written, kinds of SCORING while the held-out rows are
scored after it; kinds of WITHIN inside the step (step 0: the rehearsal), where their name says, once each; `hang_teardown` after Done. In the stages of an
export, kinds of STEP happen before the step-th sign of progress.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from backpropagate_protocol.durable import Disk
from backpropagate_protocol.framing import encode
from backpropagate_protocol.messages import Notice, Progress
from backpropagate_protocol.planned import announcement
from backpropagate_protocol.spec import PlannedFault
from backpropagate_runner.channel import Channel
from backpropagate_runner.control import Control
from backpropagate_runner.drill_disks import BESIDE, DAMAGE, DISKS, KilledBeside

FLOOD = 100_000
OTHERS = 4_096  # MiB
_MEAL = 32  # pieces of 16 MiB
_ANNOUNCE_SECONDS = 5.0


class Drill:
    """The planned faults of one attempt at one stage."""

    def __init__(
        self, faults: tuple[PlannedFault, ...], attempt: int, channel: Channel, control: Control, stage: str = "train"
    ) -> None:
        mine = [f for f in faults if f.attempt in (0, attempt) and f.stage == stage]
        unknown = sorted({f.kind for f in mine} - KINDS)
        if unknown:
            raise ValueError(f"there is no planned fault called {', '.join(unknown)}")
        self._steps: dict[int, list[str]] = {}
        self._saves: dict[int, list[str]] = {}
        for fault in mine:
            (self._saves if fault.kind in SAVE else self._steps).setdefault(fault.step, []).append(fault.kind)
        self._channel, self._control = channel, control
        self._poisoned = False
        self._awaited = (
            sys.maxsize,
            threading.Event(),
        )  # replaced as one: the thread that saves asks, the other answers
        self._done = 0
        self._retries = 0
        self._within = [(f.kind, f.step) for f in mine if f.kind in WITHIN]
        self.others = 0

    def within(self, place: str, step: int) -> None:
        """The planned shortage of memory at `place` of this step, if there is one: it comes once, another one is another fault."""
        for kind in PLACES[place]:
            if (kind, step) in self._within:
                self._within.remove((kind, step))
                self._announce(f"within step {step}", kind)
                WITHIN[kind](self)

    def plans(self, step: int) -> bool:
        """Whether something happens before this step, or while the held-out rows are scored after it."""
        return step in self._steps

    def before_step(self, step: int) -> None:
        if not self._steps:
            return
        for kind in self._steps.get(step, ()):
            if kind in STEP:
                self._announce(f"before step {step}", kind)
                STEP[kind](self)

    def after_step(self, progress: Progress) -> Progress:
        self._done = progress.step
        if progress.step >= self._awaited[0]:
            self._awaited[1].set()
        if "thrash" in self._steps.get(progress.step, ()):
            self._retries += 1
        if self._retries:
            progress = msgspec.structs.replace(progress, retries=progress.retries + self._retries)
        if self._poisoned:
            return msgspec.structs.replace(progress, loss=math.nan)
        return progress

    def while_evaluating(self, step: int) -> None:
        planned = self._steps.get(step, [])
        for kind in [kind for kind in planned if kind in SCORING]:
            planned.remove(kind)  # once: what is done about it comes back here
            self._announce(f"in the evaluation of step {step}", kind)
            SCORING[kind](self)

    def disk_for(self, step: int, disk: Disk) -> Disk:
        for kind in self._saves.get(step, ()):
            if kind in DISKS or kind == BESIDE:
                self._announce(f"in the save of step {step}", kind)
                return DISKS[kind]() if kind in DISKS else KilledBeside(self.trained_on(step))
        return disk

    def trained_on(self, step: int) -> threading.Event:
        """Is set when the step after `step` is done, if it is not so already: asked in the thread that saves."""
        self._awaited = (step + 1, threading.Event())
        if self._done > step:
            self._awaited[1].set()
        return self._awaited[1]

    def after_save(self, step: int, folder: Path) -> None:
        for kind in self._saves.get(step, ()):
            if kind in DAMAGE:
                DAMAGE[kind](folder)

    def after_done(self) -> None:
        if any("hang_teardown" in kinds for kinds in self._steps.values()):
            _hang(self)

    def _announce(self, where: str, kind: str) -> None:
        """Steps of the toy are so short that a death would come before the report of the step before it."""
        text = announcement(where, kind)
        self._channel.send(Notice("info", text))
        self._channel.flush(_ANNOUNCE_SECONDS)
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    # --- kinds that need the drill's own state ----------------------------------------------------------------------

    def poison(self) -> None:
        self._poisoned = True

    def write_garbage(self) -> None:
        self._channel.send_bytes(b"\xff" * 4096)
        self._channel.flush(5.0)

    def flood(self) -> None:
        frame = encode(Progress(0, 0, 0, 0, None))
        for _ in range(FLOOD):
            self._channel.send_bytes(frame)

    def crowd(self) -> None:
        """Out of memory, because somebody else has it."""
        self.others = OTHERS
        _oom(self)

    def hold(self) -> None:
        while self._control.stop is None:
            time.sleep(0.005)


def _torch_error(name: str) -> type[Exception]:
    """torch's own class where torch is in this process, so that the real thing is classified."""
    found: object = getattr(sys.modules.get("torch"), name, None)
    return found if isinstance(found, type) and issubclass(found, Exception) else RuntimeError


def _oom(_drill: Drill) -> None:
    raise _torch_error("OutOfMemoryError")(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.64 GiB of which 1.50 GiB is free."
    )


def _cuda_fault(_drill: Drill) -> None:
    raise _torch_error("AcceleratorError")("CUDA error: an illegal memory access was encountered")


def _device_lost(_drill: Drill) -> None:
    raise RuntimeError("Unable to determine the device handle for GPU0: GPU is lost. Reboot the system to recover it")


def _host_oom(_drill: Drill) -> None:
    raise MemoryError("a planned shortage of memory")


def _eat_memory(_drill: Drill) -> None:
    """Until somebody ends it: the kernel, where this process has a limit. Nobody's machine is filled by it."""
    eaten: list[bytearray] = []
    while len(eaten) < _MEAL:
        eaten.append(bytearray(b"x") * (1 << 24))
    raise MemoryError(f"{_MEAL * 16} MiB were eaten, and nobody minded")


def _error(_drill: Drill) -> None:
    raise RuntimeError("a planned error")


def _segfault(_drill: Drill) -> None:
    ctypes.string_at(0)


def _abort(_drill: Drill) -> None:
    os.abort()


def _kill_self(_drill: Drill) -> None:
    if sys.platform == "win32":
        os.kill(os.getpid(), 9)  # TerminateProcess with exit code 9
    else:
        os.kill(os.getpid(), signal.SIGKILL)


def _terminate_self(_drill: Drill) -> None:
    signal.raise_signal(signal.SIGTERM)


def _stop_self(_drill: Drill) -> None:
    if sys.platform == "win32":
        raise RuntimeError("a process cannot stop itself on Windows")
    os.kill(os.getpid(), signal.SIGSTOP)


def _hang(_drill: Drill) -> None:
    while True:
        time.sleep(3600)


def _hang_holding_gil(_drill: Drill) -> None:
    # PyDLL, unlike CDLL, keeps the GIL during the call: no other thread of this process runs a line of Python.
    while True:
        if sys.platform == "win32":
            ctypes.PyDLL("kernel32").Sleep(3_600_000)
        else:
            ctypes.PyDLL(None).sleep(3600)


def _exit_zero(_drill: Drill) -> None:
    os._exit(0)


def _print_noise(_drill: Drill) -> None:
    os.write(1, b"noise on descriptor 1\n" * 1000)
    os.write(2, b"noise on descriptor 2\n" * 1000)
    sys.stdout.write("noise on stdout\n" * 1000)
    sys.stdout.flush()
    if os.read(0, 10):
        raise RuntimeError("descriptor 0 still has the protocol")


STEP: dict[str, Callable[[Drill], None]] = {
    "oom": _oom,
    "cuda_fault": _cuda_fault,
    "device_lost": _device_lost,
    "host_oom": _host_oom,
    "nan": Drill.poison,  # the loss of this step and of all that follow
    "eat_memory": _eat_memory,
    "error": _error,
    "segfault": _segfault,
    "abort": _abort,
    "sigkill": _kill_self,
    "sigterm_self": _terminate_self,
    "sigstop": _stop_self,  # not on Windows
    "hang": _hang,
    "hang_gil": _hang_holding_gil,
    "hold": Drill.hold,  # waits, in good health but for the step's deadline, until a stop is asked for
    "exit0": _exit_zero,
    "garbage": Drill.write_garbage,
    "flood": Drill.flood,
    "print_noise": _print_noise,
}


SCORING: dict[str, Callable[[Drill], None]] = {
    "sigkill_in_evaluation": _kill_self,
    "oom_in_evaluation": _oom,
    "hang_in_evaluation": _hang,
    "hold_in_evaluation": Drill.hold,
}

WITHIN: dict[str, Callable[[Drill], None]] = {
    "oom_in_forward": _oom,
    "oom_in_backward": _oom,
    "oom_in_optimizer": _oom,
    "oom_by_others": Drill.crowd,
}
PLACES = {
    "forward": ("oom_in_forward", "oom_by_others"),
    "backward": ("oom_in_backward",),
    "optimizer": ("oom_in_optimizer",),
}

SAVE = frozenset(DISKS) | frozenset(DAMAGE) | {BESIDE}
# The allocator has to try again in that step and gives memory back; steps in a row of it are a fault.
_TOLD = {"thrash", "hang_teardown"}
KINDS = frozenset(STEP) | SAVE | frozenset(SCORING) | frozenset(WITHIN) | _TOLD
