"""What faults leave of a run's time: the cost of one is measured, how often they come is arithmetic."""

from __future__ import annotations

import statistics
from pathlib import Path

import psutil

from _bench_faults import patient
from _bench_figure import Figure
from _bench_run import Supervised, a_spec
from _bench_saves import held_up
from _bench_takeover import Pairs
from backpropagate.events import AttemptStarted, Recovering, RunEnded, Step
from backpropagate_protocol.spec import SafetySpec

_SAVE_SECONDS = 0.4  # of the toy: a scaled copy of the default
_STEP = 0.01
_SETTLED = 1.2  # seconds after which a child saves at its full interval
_GOLDEN = 0.618  # its multiples fall evenly into an interval, however many there are


def goodput(folder: Path, rows: Path, pairs: Pairs, kills: int) -> list[Figure]:
    """`pairs`: how long real training stands still, with a standby and without."""
    redone = _redone(folder, rows, kills)
    interval = SafetySpec().save_seconds
    held = held_up(folder)
    still = statistics.median(one.seconds for one in pairs.cold)
    with_standby = statistics.median(one.seconds for one in pairs.warm)
    once = still + redone * interval
    figures = [
        Figure(
            "cost of one fault",
            f"{once:.1f} s = {still:.1f} s from death to first new step (tiny base, no standby) + {redone:.2f} × "
            f"{interval:.0f} s done again ({redone:.2f} of the interval between adaptive saves: mean of {kills} deaths)",
        )
    ]
    for name, seconds, goal in (("one fault an hour", 3600, 0.97), ("one per ten minutes", 600, 0.88)):
        good = (1 - once / seconds) * (1 - held)
        better = (1 - (with_standby + redone * interval) / seconds) * (1 - held)
        worst = (1 - (30 + once) / seconds) * (1 - held)
        figures.append(
            Figure(
                f"goodput at {name}",
                f"{100 * good:.1f} % = (1 − {once:.1f} / {seconds}) × (1 − {100 * held:.2f} % for saves); with a standby "
                f"{100 * better:.1f} %; if each were a hang, noticed after 30 s, {100 * worst:.1f} %",
                f"≥ {100 * goal:.0f} %",
                good >= goal,
            )
        )
    return figures


def _redone(folder: Path, rows: Path, kills: int) -> float:
    """Mean work that is done again after a death at any moment, as a share of the longest time between two saves."""
    model = f"toy?step_seconds={_STEP}"
    spec = a_spec(folder / "redone", rows, backend="toy", model=model, steps=10**6, save_steps=10**6)
    run = Supervised(patient(spec, save_steps=None, save_seconds=_SAVE_SECONDS))
    lost: list[float] = []
    paces: list[float] = []
    pid, first_step, due = 0, 0.0, 0.0
    for event in run.events(every=0.002):
        match event:
            case AttemptStarted():
                pid, first_step = event.pid, 0.0
            case Recovering() if pid == 0:
                lost.append((event.steps_lost + 0.5) * statistics.fmean(paces))  # and half of the step that it was in
                if len(lost) == kills:
                    break
            case Step() if not first_step:
                first_step = event.time
                due = first_step + _SETTLED + _SAVE_SECONDS * (len(lost) * _GOLDEN % 1)
            case Step():
                paces.append(event.step_seconds)
                if pid and event.time > due:
                    psutil.Process(pid).kill()
                    pid = 0
            case RunEnded():
                raise RuntimeError(f"the run ended as {event.status!r}: {event.message}; see {run.run.log}")
            case _:
                pass
    run.stop()
    return statistics.fmean(lost) / _SAVE_SECONDS
