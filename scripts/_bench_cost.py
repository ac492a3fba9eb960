"""What supervision adds to a step: processor time that two equal trainings cannot hide, and both of them by the clock."""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

from _bench_figure import Figure, spread
from _bench_run import BATCH, MAX_LENGTH, PATIENCE, RANK, ROOT, TINY, Supervised, a_spec, write_rows
from backpropagate.events import AttemptStarted, RunEnded, Step

_AT_PACE = 15.0  # seconds for which a child that only reports is watched
_GOAL = 0.005


@dataclass(frozen=True)
class Pace:
    """Seconds for one optimizer step: by the clock (median), and of processor time (mean)."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Reporting:
    """Shares of one core: what a supervisor and its child use when the child does nothing but report its steps."""

    parent: float
    child: float


def cost(folder: Path, rounds: int, steps: int) -> list[Figure]:
    """Supervised and plain rounds in turns, so that a machine that slows down slows both."""
    rows = write_rows(folder / "rows.jsonl", 200)
    plain: list[Pace] = []
    supervised: list[Pace] = []
    for n in range(rounds):
        plain.append(_plain(rows, steps))
        supervised.append(_supervised(folder / f"cost-{n}", rows, steps))
    wall = [ours.wall / theirs.wall for ours, theirs in zip(supervised, plain, strict=True)]
    cpu = [ours.cpu / theirs.cpu for ours, theirs in zip(supervised, plain, strict=True)]
    step = min(pace.wall for pace in plain)
    seen = _reporting(folder, rows, step)
    share = seen.parent + seen.child
    noise = max(pace.wall for pace in plain) / step - 1
    return [
        Figure(
            "supervision, of step time",
            f"{100 * share:.2f} % = {100 * seen.parent:.2f} % supervisor + {100 * seen.child:.2f} % child that only "
            f"reports, processor time at the pace of plain TRL ({1000 * step:.0f} ms a step)",
            "≤ 0.5 %",
            share <= _GOAL,
        ),
        Figure("supervised step : plain TRL step, by the clock", spread(wall)),
        Figure("the same in the child's processor time", spread(cpu)),
        Figure("plain TRL against itself, by the clock: what can be told apart here", f"{100 * noise:.1f} %"),
    ]


def _plain(rows: Path, steps: int) -> Pace:
    arguments = [str(TINY), str(rows), str(steps), str(BATCH), str(RANK), str(MAX_LENGTH)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "plain_trl.py"), *arguments],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=PATIENCE,
    )  # fmt: skip
    seen: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return Pace(_median_gap(seen["wall"][1:]), (seen["cpu"][-1] - seen["cpu"][1]) / (steps - 2))


def _supervised(folder: Path, rows: Path, steps: int) -> Pace:
    run = Supervised(a_spec(folder, rows, backend="cpu", model=str(TINY), steps=steps, save_steps=10**6))
    pid, ends = 0, list[float]()
    used: list[tuple[int, float]] = []  # step, the child's processor seconds
    for event in run.events(every=0.1):
        match event:
            case AttemptStarted():
                pid = event.pid
            case Step(step=step, time=when):
                ends.append(when)
                if step in (2, 3, steps - 2, steps - 1):
                    used.append((step, processor_seconds(pid)))
            case RunEnded() if event.status != "completed":
                raise RuntimeError(f"the supervised run ended as {event.status}: {event.message}; see {run.run.log}")
            case _:
                pass
    (first, before), (last, after) = used[0], used[-1]
    return Pace(_median_gap(ends[1:]), (after - before) / (last - first))


def _reporting(folder: Path, rows: Path, step: float) -> Reporting:
    """A toy whose steps are a wait of the same length: all the processor time that it uses is what supervision asks of it."""
    steps = max(10, round(_AT_PACE / step))
    model = f"toy?step_seconds={step:.4f}"
    run = Supervised(a_spec(folder / "at-pace", rows, backend="toy", model=model, steps=steps + 4, save_steps=10**6))
    pid = 0
    looks: list[tuple[float, float, float]] = []  # when, and the processor seconds of supervisor and child
    for event in run.events(every=0.1):
        match event:
            case AttemptStarted():
                pid = event.pid
            case Step() if event.step in (2, steps + 2):
                looks.append((event.time, processor_seconds(run.pid), processor_seconds(pid)))
            case _:
                pass
    (began, parent_before, child_before), (ended, parent_after, child_after) = looks
    seconds = ended - began
    return Reporting((parent_after - parent_before) / seconds, (child_after - child_before) / seconds)


@cache
def _has_schedstat() -> bool:
    return Path("/proc/self/task").is_dir() and Path("/proc/self/schedstat").is_file()


def processor_seconds(pid: int) -> float:
    """Of all threads that live. The usual counters go by hundredths of a second: too coarse for what is looked for."""
    if _has_schedstat():
        threads = Path(f"/proc/{pid}/task").iterdir()
        return sum(int((thread / "schedstat").read_text(encoding="ascii").split()[0]) for thread in threads) / 1e9
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _median_gap(ends: list[float]) -> float:
    return statistics.median(b - a for a, b in itertools.pairwise(ends))
