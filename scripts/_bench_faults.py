"""How soon deaths and hangs are noticed, and how long one holds out who ignores everything but SIGKILL."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import msgspec
import psutil

from _bench_figure import Figure, milliseconds, percentile
from _bench_run import Supervised, a_spec
from backpropagate.events import (
    AttemptStarted,
    CheckpointCommitted,
    FaultRecorded,
    FaultSeen,
    Noticed,
    RunEnded,
    Step,
    StopRequested,
)
from backpropagate_protocol.planned import announced
from backpropagate_protocol.spec import PlannedFault, RunSpec

_SOON = 0.05  # seconds


def patient(spec: RunSpec, **safety: object) -> RunSpec:
    """A run whose child may die as often as it has to."""
    changed = msgspec.structs.replace(spec.safety, max_respawns=10**6, **safety)
    return msgspec.structs.replace(spec, safety=changed)


def deaths(folder: Path, rows: Path, kills: int) -> list[Figure]:
    """Kills the child of a run in full training, again and again."""
    spec = a_spec(folder / "deaths", rows, backend="toy", model="toy?step_seconds=0.002", steps=10**6, save_steps=10)
    run = Supervised(patient(spec))
    noticed: list[float] = []
    resumed: list[float] = []
    pid, killed_at, awaiting = 0, 0.0, "checkpoint"
    for event in run.events(every=0.005):
        match event:
            case AttemptStarted():
                pid = event.pid
            case CheckpointCommitted() if awaiting == "checkpoint":
                awaiting, killed_at = "fault", time.time()
                psutil.Process(pid).kill()
            case FaultSeen() if awaiting == "fault":
                noticed.append(event.time - killed_at)
                awaiting = "step"
            case Step() if awaiting == "step":
                resumed.append(event.time - killed_at)
                awaiting = "checkpoint"
                if len(resumed) == kills:
                    break
            case RunEnded():
                raise RuntimeError(f"the run ended as {event.status!r} before all kills; see {run.run.log}")
            case _:
                pass
    run.stop()
    high = percentile(noticed, 0.99)
    return [
        Figure("death noticed", milliseconds(noticed), "≤ 50 ms p99", high <= _SOON),
        Figure("toy: death to first new step", milliseconds(resumed)),
    ]


def hangs(folder: Path, rows: Path) -> list[Figure]:
    """Where the floor decides (scaled: it is a wait, and nothing else), and where the pace of the steps does."""
    by_floor = _hangs(folder / "by-floor", rows, floor=2.0, step=0.005, at=(40, 80, 120))
    by_pace = _hangs(folder / "by-pace", rows, floor=0.5, step=0.4, at=(10,))
    late = max(taken - deadline for taken, deadline in by_floor + by_pace)
    (taken, deadline) = by_pace[0]
    return [
        Figure(
            "hang noticed",
            f"max(5 × p99 step, floor) + {1000 * late:.0f} ms at most: {max(t for t, _ in by_floor):.2f} s at a floor of "
            f"2 s (worst of {len(by_floor)}), {taken:.2f} s at 5 × {deadline / 5:.3f} s; so {30 + late:.2f} s at 30 s",
            "≤ max(5 × p99 step, 30 s), and 50 ms for a look",
            late <= _SOON,
        )
    ]


def _hangs(folder: Path, rows: Path, *, floor: float, step: float, at: tuple[int, ...]) -> list[tuple[float, float]]:
    """For each hang: seconds from the last step to its being noticed, and the deadline that its steps had earned."""
    faults = tuple(PlannedFault("hang", before, attempt) for attempt, before in enumerate(at, 1))
    model = f"toy?step_seconds={step}"
    spec = a_spec(folder, rows, backend="toy", model=model, steps=at[-1] + 2, save_steps=at[0] // 2, faults=faults)
    found: list[tuple[float, float]] = []
    times: list[float] = []
    last = 0.0
    for event in Supervised(patient(spec, hang_floor=floor)).events():
        match event:
            case Step():
                if last:
                    times.append(event.step_seconds)
                last = event.time
            case FaultSeen() if event.kind == "hang":
                found.append((event.time - last, max(5 * percentile(times, 0.99), floor)))
                last = 0.0
            case _:
                pass
    if len(found) != len(at):
        raise RuntimeError(f"{len(found)} of {len(at)} hangs were noticed; see {folder}")
    return found


def ladder(folder: Path, rows: Path) -> list[Figure]:
    """The signals are blocked before the runner's interpreter begins, so nothing that it does can let them in."""
    if sys.platform == "win32":
        return [Figure("kill ladder", "Windows knows one way to end a process, and it is not refused", "≤ 10 s")]
    deaf = {signal.SIGTERM, signal.SIGABRT, signal.SIGHUP, signal.SIGINT}
    fault = (PlannedFault("hang", 12, 1),)
    spec = a_spec(folder / "deaf", rows, backend="toy", model="toy", steps=20, save_steps=5, faults=fault)
    seen, gone = 0.0, 0.0
    for event in Supervised(patient(spec, hang_floor=1.0), blocked=deaf).events():
        match event:
            case FaultSeen():
                seen = event.time
            case FaultRecorded():
                gone = event.time
            case _:
                pass
    allowed = 4.0
    spec = a_spec(folder / "stopped", rows, backend="toy", model="toy", steps=20, save_steps=5, faults=fault)
    run = Supervised(patient(spec, hang_floor=60.0, grace=allowed), blocked=deaf - {signal.SIGINT})
    asked, ended = 0.0, 0.0
    for event in run.events():
        match event:
            case Noticed() if announced(event.text) == "hang":
                run.interrupt()
            case StopRequested():
                asked = event.time
            case RunEnded():
                ended = event.time
            case _:
                pass
    if not (seen and gone and asked and ended):
        raise RuntimeError(f"a deaf child was not ended; see {folder}")
    return [
        Figure(
            "kill ladder, a child that ignores all but SIGKILL",
            f"{gone - seen:.1f} s from the hang noticed until it is gone",
            "≤ 10 s",
            gone - seen <= 10.0,
        ),
        Figure(
            f"the same child, asked to stop with {allowed:.0f} s to save",
            f"{ended - asked:.1f} s until the run has ended",
        ),
    ]
