"""How long a run stands still when its child is killed: with a standby that has imported everything, and without."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from _bench_run import TINY, Supervised, a_spec
from backpropagate.events import AttemptStarted, CheckpointCommitted, Event, Recovering, RunEnded, Step

_IDLE = 0.02  # processor seconds in the blink of an eye; less than this, and it waits
_BLINK = 0.5


@dataclass(frozen=True)
class Stillness:
    """Seconds from the kill to the first new step, back-off not counted; MiB that the standby held, 0 without one."""

    seconds: float
    standby_mib: int = 0


def stillness(folder: Path, rows: Path, wish: str) -> Stillness:
    """One kill in a real training of the tiny base. `wish`: on, off. The standby, if there is one, has come to rest before."""
    spec = a_spec(folder, rows, backend="cpu", model=str(TINY), steps=10**4, save_steps=3)
    spec = msgspec.structs.replace(spec, safety=msgspec.structs.replace(spec.safety, standby=wish))
    run = Supervised(spec)
    try:
        return _one_kill(run, run.events(), wish)
    finally:
        run.stop()


def _one_kill(run: Supervised, events: Iterator[Event], wish: str) -> Stillness:
    pid, held, killed_at, delay = 0, 0, 0.0, 0.0
    for event in events:
        match event:
            case AttemptStarted() if not killed_at:
                pid = event.pid
            case CheckpointCommitted() if not killed_at:
                if wish == "on":
                    standby = _resting(run, pid)
                    if standby is None:
                        continue
                    held = standby.memory_info().rss >> 20
                killed_at = time.time()
                psutil.Process(pid).kill()
            case AttemptStarted():
                pid = 0
                if event.standby is not (wish == "on"):
                    raise RuntimeError(f"standby {wish}, but the next attempt says {event.standby}")
            case Recovering() if killed_at:
                delay = event.delay
            case Step() if killed_at and not pid:
                return Stillness(event.time - killed_at - delay, held)
            case RunEnded():
                break
            case _:
                pass
    raise RuntimeError(f"the run ended before its child was killed; see {run.run.log}")


def _resting(run: Supervised, working: int) -> psutil.Process | None:
    """The standby, if it has nothing more to import."""
    for child in run.children():
        if child.pid != working and "backpropagate_runner" in child.cmdline():
            before = sum(child.cpu_times()[:2])
            time.sleep(_BLINK)
            spent = sum(child.cpu_times()[:2])
            return child if spent > 1.0 and spent - before < _IDLE else None
    return None
