"""What shall befall a run: faults of every kind at random steps, one child after the other, all from one seed.

Each child meets one fault that ends it, or that ends its supervisor, and perhaps one more in a save before. The steps rise
from child to child, so that every child gets further than the one before: that a run without progress is given up is
right, and tested elsewhere.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import StrEnum
from random import Random

from backpropagate_protocol.spec import PlannedFault


class Outside(StrEnum):
    """What is done to a run from outside, while its child holds still before a known step, or at any moment."""

    KILL_CHILD = "child killed"
    KILL_CHILD_ANY_TIME = "child killed at any moment"
    KILL_CHILD_AGAIN = "child killed, and the next one while it starts"
    STOP_CHILD = "child stopped"
    SPOIL_NEWEST = "newest checkpoint damaged, child killed"
    KILL_SUPERVISOR = "supervisor killed"
    KILL_SUPERVISOR_AGAIN = "supervisor killed, and the next one while it starts"
    STOP_SUPERVISOR = "supervisor stopped, child killed meanwhile"
    END_SUPERVISOR = "supervisor asked to end"
    HANG_UP = "terminal closed, child killed"


POSIX_ONLY = {Outside.STOP_CHILD, Outside.STOP_SUPERVISOR, Outside.END_SUPERVISOR, Outside.HANG_UP}
DEADLY = ("error", "segfault", "abort", "sigkill", "exit0", "garbage", "sigterm_self")
HALVING = ("oom", "cuda_fault", "host_oom")
SILENT = ("hang", "hang_gil", "sigstop")
DEADLY_SAVES = ("sigkill_in_save", "sigkill_before_manifest")
FAILING_SAVES = ("disk_full", "disk_error")
SPOILT_SAVES = ("torn_save", "bitflip_save")
_NOT_ON_WINDOWS = {"sigstop", "sigterm_self"}
_MOST_HALVINGS = 3  # from 8 samples to 1


@dataclass(frozen=True)
class Blow:
    """What is done from outside to the child of one attempt once step `before` is the next; `delay`: any moment, seconds."""

    what: Outside
    before: int
    delay: float


@dataclass(frozen=True)
class Plan:
    """The faults that the children bring about themselves, and the blows from outside by attempt."""

    inside: tuple[PlannedFault, ...]
    outside: dict[int, Blow]
    halvings: int


@dataclass(frozen=True)
class Odds:
    """How often what costs time: a hang takes its whole deadline to be seen."""

    outside: float = 0.4
    save: float = 0.3
    halving: float = 0.03
    silent: float = 0.04
    noise: float = 0.03


def make_plan(random: Random, children: int, steps: int, save_steps: int, odds: Odds) -> Plan:
    """Faults for about `children` children of a run of `steps` steps."""
    stride = (steps - 1) // children
    if stride < 2:
        raise ValueError(f"{steps} steps are too few for {children} children")
    inside: list[PlannedFault] = []
    outside: dict[int, Blow] = {}
    attempt, halvings, last = 0, 0, 0
    for child in range(children):
        attempt += 1
        step = 1 + child * stride + random.randrange(1, stride)
        if random.random() < odds.noise:
            inside.append(PlannedFault(random.choice(("print_noise", "flood")), step, attempt))
        saves = [at for at in range(save_steps, step, save_steps) if at > last]
        saving = ""
        if saves and random.random() < odds.save:
            saving = random.choice((*DEADLY_SAVES, *FAILING_SAVES, *SPOILT_SAVES))
            inside.append(PlannedFault(saving, saves[-1], attempt))
        last = step
        if saving in DEADLY_SAVES:
            continue
        if random.random() < odds.outside:
            what = random.choice([w for w in Outside if sys.platform != "win32" or w not in POSIX_ONLY])
            if what is Outside.STOP_CHILD and random.random() > 4 * odds.silent:
                what = Outside.KILL_CHILD
            outside[attempt] = Blow(what, step, random.random())
            inside.append(PlannedFault("hold", step, attempt))
            if what is Outside.KILL_CHILD_AGAIN:
                attempt += 1
                outside[attempt] = Blow(Outside.KILL_CHILD_ANY_TIME, step + 1, random.random())
                inside.append(PlannedFault("hold", step + 1, attempt))
            continue
        drawn = random.random()
        if drawn < odds.silent:
            kind = random.choice(SILENT)
        elif drawn < odds.silent + odds.halving and halvings < _MOST_HALVINGS:
            kind, halvings = random.choice(HALVING), halvings + 1
        else:
            kind = random.choice(DEADLY)
        if sys.platform == "win32" and kind in _NOT_ON_WINDOWS:
            kind = "sigkill"
        inside.append(PlannedFault(kind, step, attempt))
    return Plan(tuple(inside), outside, halvings)
