"""How long a run stands still when its child is killed: with a standby that has imported everything, and without."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from _bench_figure import Figure, spread
from _bench_run import TINY, Supervised, a_spec
from backpropagate.events import AttemptStarted, CheckpointCommitted, Recovering, RunEnded, Step

_IDLE = 0.02  # processor seconds in the blink of an eye; less than this, and it waits
_BLINK = 0.5
_ROW = 3  # kills of one run: each saves a start


@dataclass(frozen=True)
class Stillness:
    """Seconds from the kill to the first new step, back-off not counted; MiB that the standby held, 0 without one."""

    seconds: float
    standby_mib: int = 0


@dataclass(frozen=True)
class Pairs:
    """The n-th kill of the one belongs to the n-th of the other."""

    cold: tuple[Stillness, ...]
    warm: tuple[Stillness, ...]


def pairs(folder: Path, rows: Path, count: int) -> Pairs:
    """In turns, a few of the one and then of the other, so that whatever else the machine does strikes both."""
    cold: list[Stillness] = []
    warm: list[Stillness] = []
    while len(cold) < count:
        now = min(_ROW, count - len(cold))
        cold += stillness(folder / f"cold-{len(cold)}", rows, "off", now)
        warm += stillness(folder / f"standby-{len(warm)}", rows, "on", now)
    return Pairs(tuple(cold), tuple(warm))


def takeover(found: Pairs) -> list[Figure]:
    ratios = [ours.seconds / theirs.seconds for ours, theirs in zip(found.warm, found.cold, strict=True)]
    name = "tiny base on the CPU: fault to first new step"

    def seconds(all_of_them: tuple[Stillness, ...]) -> str:
        return f"{statistics.median(one.seconds for one in all_of_them):.2f} s (median of {len(all_of_them)})"

    return [
        Figure("fault to first new step, with a standby : cold", spread(ratios), "≤ 0.25", statistics.median(ratios) <= 0.25),
        Figure(f"{name}, cold", seconds(found.cold)),
        Figure(f"{name}, with a standby", seconds(found.warm)),
        Figure("memory that a waiting standby holds", f"{max(one.standby_mib for one in found.warm)} MiB"),
    ]  # fmt: skip


def stillness(folder: Path, rows: Path, wish: str, kills: int) -> list[Stillness]:
    """Kills in one real training of the tiny base. `wish`: on, off. The standby, if there is one, has come to rest before."""
    spec = a_spec(folder, rows, backend="cpu", model=str(TINY), steps=10**4, save_steps=3)
    spec = msgspec.structs.replace(spec, safety=msgspec.structs.replace(spec.safety, standby=wish))
    run = Supervised(spec)
    try:
        return _kills(run, wish, kills)
    finally:
        run.stop()


def _kills(run: Supervised, wish: str, kills: int) -> list[Stillness]:
    found: list[Stillness] = []
    pid, held, killed_at, delay = 0, 0, 0.0, 0.0
    for event in run.events():
        match event:
            case AttemptStarted():
                pid = event.pid
                if killed_at and event.standby is not (wish == "on"):
                    raise RuntimeError(f"standby {wish}, but the next attempt says {event.standby}")
            case CheckpointCommitted() if not killed_at:
                if wish == "on":
                    standby = _resting(run, pid)
                    if standby is None:
                        continue
                    held = standby.memory_info().rss >> 20
                killed_at = time.time()
                psutil.Process(pid).kill()
                pid = 0
            case Recovering() if killed_at:
                delay = event.delay
            case Step() if killed_at and pid:
                found.append(Stillness(event.time - killed_at - delay, held))
                killed_at = 0.0
                if len(found) == kills:
                    return found
            case RunEnded():
                break
            case _:
                pass
    raise RuntimeError(f"the run ended after {len(found)} of {kills} kills; see {run.run.log}")


def _resting(run: Supervised, working: int) -> psutil.Process | None:
    """The standby, if it has nothing more to import."""
    for child in run.children():
        if child.pid != working and "backpropagate_runner" in child.cmdline():
            before = sum(child.cpu_times()[:2])
            time.sleep(_BLINK)
            spent = sum(child.cpu_times()[:2])
            return child if spent > 1.0 and spent - before < _IDLE else None
    return None
