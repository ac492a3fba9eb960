"""What supervision costs and how soon it acts, as ratios measured in one go; prints a Markdown table with the goals.

    python scripts/bench_supervision.py                    all of it, some minutes
    python scripts/bench_supervision.py --rounds 1 --steps 12 --kills 1

Needs the environment that scripts/test.py makes. Every figure comes from real processes: real training of the tiny base,
real pipes, real kills. Supervised and plain rounds alternate, so that a machine that slows down slows both; the median of
the pairs' ratios counts, and their range says how far it can be trusted. On a small CPU two equal trainings differ by
several per cent, so the toy's step, which is nearly all supervision, bounds the same cost a second way.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import anyio
import msgspec
import psutil

from _bench_run import BATCH, MAX_LENGTH, PATIENCE, RANK, ROOT, TINY, Supervised, a_spec, write_rows
from _bench_takeover import Stillness, stillness
from backpropagate.doors.process import running
from backpropagate.events import AttemptStarted, CheckpointCommitted, FaultSeen, Recovering, RunEnded, Step
from backpropagate.keep import runs
from backpropagate_protocol.jobs import TrainJob
from backpropagate_protocol.messages import Hello, Progress, RunJob
from backpropagate_protocol.spec import PlannedFault, RunSpec

_HALF_GB_RANK = 3_400  # of an adapter of the tiny base


@dataclass(frozen=True)
class Figure:
    """One row of the table. `met` is None where there is no goal."""

    what: str
    value: str
    goal: str = ""
    met: bool | None = None

    def row(self) -> str:
        verdict = {None: "", True: "met", False: "**short**"}[self.met]
        return f"| {self.what} | {self.value} | {self.goal} | {verdict} |"


# ----- what supervision costs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pace:
    """Seconds for one optimizer step: by the clock (median), and of processor time (mean)."""

    wall: float
    cpu: float


def plain_pace(rows: Path, steps: int) -> Pace:
    arguments = [str(TINY), str(rows), str(steps), str(BATCH), str(RANK), str(MAX_LENGTH)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "plain_trl.py"), *arguments],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=PATIENCE,
    )  # fmt: skip
    seen: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return Pace(_median_gap(seen["wall"][1:]), (seen["cpu"][-1] - seen["cpu"][1]) / (steps - 2))


def supervised_pace(folder: Path, rows: Path, steps: int) -> tuple[Pace, float, int]:
    """The pace, the supervisor's own processor seconds for one step, and its peak memory."""
    spec = a_spec(folder, rows, backend="cpu", model=str(TINY), steps=steps, save_steps=10**6)
    run = Supervised(spec)
    child: psutil.Process | None = None
    ends: list[float] = []
    cpu: list[tuple[int, float, float]] = []  # step, the child's seconds, the supervisor's
    status = ""
    for event in run.events(every=0.1):
        match event:
            case AttemptStarted(pid=pid):
                child = psutil.Process(pid)
            case Step(step=step, time=when):
                ends.append(when)
                if child is not None and step in (2, 3, steps - 2, steps - 1):
                    times = child.cpu_times()
                    cpu.append((step, times.user + times.system, run.cpu_seconds()))
            case RunEnded():
                status = event.status
            case _:
                pass
    if status != "completed":
        raise RuntimeError(f"the supervised run ended as {status!r}; see {run.run.log}")
    (first, child_before, ours_before), (last, child_after, ours_after) = cpu[0], cpu[-1]
    per_step = last - first
    pace = Pace(_median_gap(ends[1:]), (child_after - child_before) / per_step)
    return pace, (ours_after - ours_before) / per_step, run.peak_rss


def _spread(ratios: list[float]) -> str:
    middle, pairs = statistics.median(ratios), len(ratios)
    return f"{middle:.3f} (median of {pairs} pairs, {min(ratios):.3f} to {max(ratios):.3f})"


def _share(ratio: float) -> str:
    return f"{ratio:.4f}" if ratio >= 0.0005 else "under 0.0005"


def _median_gap(ends: list[float]) -> float:
    return statistics.median(b - a for a, b in itertools.pairwise(ends))


def cost(folder: Path, rounds: int, steps: int) -> list[Figure]:
    rows = write_rows(folder / "rows.jsonl", 200)
    plain: list[Pace] = []
    supervised: list[Pace] = []
    parent_seconds: list[float] = []
    peak = 0
    for n in range(rounds):
        plain.append(plain_pace(rows, steps))
        pace, parent, rss = supervised_pace(folder / f"cost-{n}", rows, steps)
        supervised.append(pace)
        parent_seconds.append(parent)
        peak = max(peak, rss)
    wall = [ours.wall / theirs.wall for ours, theirs in zip(supervised, plain, strict=True)]
    cpu = [ours.cpu / theirs.cpu for ours, theirs in zip(supervised, plain, strict=True)]
    share = min(parent_seconds) / min(p.cpu for p in plain)
    step = min(p.wall for p in plain)
    bare = toy_step(folder, rows)
    return [
        Figure("step of plain TRL, for scale", f"{1000 * step:.0f} ms"),
        Figure(
            "supervised step : plain TRL step, by the clock", _spread(wall), "≤ 1.005", statistics.median(wall) <= 1.005
        ),
        Figure("the same in the child's processor time", _spread(cpu)),
        Figure(
            f"a whole toy step, mostly supervision ({1e6 * bare:.0f} µs) : plain TRL step",
            _share(bare / step),
            "≤ 0.005",
            bare / step <= 0.005,
        ),
        Figure("supervisor's processor time : plain TRL step", _share(share)),
        Figure("supervisor's peak memory", f"{peak / 2**20:.1f} MiB", "≤ 40 MiB", peak <= 40 * 2**20),
    ]


def toy_step(folder: Path, rows: Path, steps: int = 50_000) -> float:
    """Seconds for a step of the toy backend, whose arithmetic is eight subtractions.

    The rest is what the child does for the supervisor at every step, so this bounds the overhead from above where the
    difference of two long trainings drowns in what else the machine does.
    """
    run = Supervised(a_spec(folder / "toy-step", rows, backend="toy", model="toy", steps=steps, save_steps=10**9))
    seen = [(event.step, event.time) for event in run.events() if isinstance(event, Step)]
    return (seen[-1][1] - seen[0][1]) / (seen[-1][0] - seen[0][0])


def start_up(folder: Path, repeats: int) -> list[Figure]:
    def best(*arguments: str) -> float:
        taken = []
        for _ in range(repeats):
            began = time.perf_counter()
            subprocess.run([sys.executable, *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=True)
            taken.append(time.perf_counter() - began)
        return min(taken)

    bare = best("-c", "pass")
    help_page = best("-m", "backpropagate", "--help")
    listing = best("-m", "backpropagate", "list-runs", "--output", str(folder / "cost-0"))
    return [
        Figure("bare Python, for scale", f"{1000 * bare:.0f} ms"),
        Figure("`backprop --help` : bare Python", f"{help_page / bare:.1f}", "≤ 5", help_page / bare <= 5),
        Figure("`backprop list-runs` : bare Python", f"{listing / bare:.1f}"),
    ]


# ----- how soon it acts ----------------------------------------------------------------------------------------------


def frames(folder: Path) -> list[Figure]:
    """A flood of progress frames from a real runner, through its own writer, pipe and decoder."""
    rows = write_rows(folder / "few.jsonl", 20)
    fault = (PlannedFault(kind="flood", step=2),)
    spec = a_spec(folder / "flood", rows, backend="toy", model="toy", steps=3, save_steps=10, faults=fault)
    run = runs.create(spec)
    job = TrainJob(spec=spec, run_dir=str(run.path), attempt=1, micro_batch=BATCH, accumulation=1, gradient_checkpointing=None)  # fmt: skip
    count, seconds = anyio.run(_count_frames, job)
    rate = count / seconds
    return [Figure(f"frames through the pipe ({count:,} of them)", f"{rate:,.0f} / s", "≥ 50,000 / s", rate >= 50_000)]


async def _count_frames(job: TrainJob) -> tuple[int, float]:
    count, began, ended = 0, 0.0, 0.0
    with tempfile.TemporaryFile() as log:
        async with running(None, job.spec.run_id, "toy", log.fileno()) as runner:
            async for message in runner.messages():
                if isinstance(message, Hello):
                    runner.send(RunJob(job))
                elif isinstance(message, Progress) and message.total_steps == 0:
                    began = began or time.perf_counter()
                    ended = time.perf_counter()
                    count += 1
    return count, ended - began


def reaction(folder: Path, name: str, spec: RunSpec, kills: int) -> list[Figure]:
    """Kills the child of a run in full training, again and again: how soon is it noticed, how soon does it go on?"""
    run = Supervised(spec)
    noticed: list[float] = []
    resumed: list[float] = []
    pid = 0
    killed_at = 0.0
    delay = 0.0
    awaiting = "checkpoint"
    for event in run.events():
        match event:
            case AttemptStarted():
                pid = event.pid
            case CheckpointCommitted() if awaiting == "checkpoint":
                awaiting = "fault"
                killed_at = time.time()
                psutil.Process(pid).kill()
            case FaultSeen() if awaiting == "fault":
                noticed.append(event.time - killed_at)
            case Recovering() if awaiting == "fault":
                delay = event.delay
                awaiting = "step"
            case Step() if awaiting == "step":
                resumed.append(event.time - killed_at - delay)
                awaiting = "checkpoint"
                if len(resumed) == kills:
                    break
            case RunEnded():
                raise RuntimeError(f"the run ended as {event.status!r} before all kills; see {run.run.log}")
            case _:
                pass
    run.stop()
    figures = [
        Figure(f"{name}: fault to first new step, back-off not counted", f"{min(resumed):.2f} s (best of {kills})")
    ]
    if name == "toy":
        typical = statistics.median(noticed)
        figures.insert(0, Figure("a killed child is noticed after", f"{1000 * typical:.0f} ms (median of {kills})", "≤ 50 ms", typical <= 0.05))  # fmt: skip
    return figures


def takeover(folder: Path, rows: Path, rounds: int) -> list[Figure]:
    """In turns, so that whatever else the machine does strikes both."""
    cold: list[Stillness] = []
    warm: list[Stillness] = []
    for n in range(rounds):
        cold.append(stillness(folder / f"cold-{n}", rows, "off"))
        warm.append(stillness(folder / f"standby-{n}", rows, "on"))
    ratios = [ours.seconds / theirs.seconds for ours, theirs in zip(warm, cold, strict=True)]
    typical = statistics.median(ratios)
    name = "tiny base on the CPU: fault to first new step"

    def seconds(all_of_them: list[Stillness]) -> str:
        return f"{statistics.median(one.seconds for one in all_of_them):.2f} s (median of {rounds})"

    return [
        Figure(f"{name}, without a standby", seconds(cold)),
        Figure(f"{name}, with a standby", seconds(warm)),
        Figure("with a standby : without", _spread(ratios), "≤ 0.25", typical <= 0.25),
        Figure("memory that a waiting standby holds", f"{max(one.standby_mib for one in warm)} MiB"),
    ]


def checkpoints(folder: Path, steps: int = 7) -> list[Figure]:
    """How long a training stands still for a checkpoint of half a GB, and what else it feels of its being written.

    The adapter is wide enough that it and its moments take that much, and the rows are short, so that a step is not all.
    """
    spec = a_spec(
        folder / "large",
        write_rows(folder / "short.jsonl", 20),
        backend="cpu",
        model=str(TINY),
        steps=steps,
        save_steps=5,
    )
    spec = msgspec.structs.replace(
        spec,
        lora=msgspec.structs.replace(spec.lora, r=_HALF_GB_RANK, alpha=_HALF_GB_RANK),
        data=msgspec.structs.replace(spec.data, max_length=48),
        train=msgspec.structs.replace(spec.train, effective_batch=1, batch_size=1),
    )
    ends: dict[int, float] = {}
    saves: list[CheckpointCommitted] = []
    for event in Supervised(spec).events():
        match event:
            case Step(step=step, time=when):
                ends[step] = when
            case CheckpointCommitted() if event.step < steps:  # the last one is all that is left to do
                saves.append(event)
            case _:
                pass
    gaps = {step: when - ends[step - 1] for step, when in ends.items() if step - 1 in ends}
    disturbed = {save.step + 1 for save in saves}
    calm = statistics.median(gap for step, gap in gaps.items() if step not in disturbed)
    blocked = max(save.blocked for save in saves)
    size = saves[0].bytes / 1e9
    return [
        Figure(f"a checkpoint of {size:.2f} GB holds up the training for", f"{blocked:.2f} s (longest of {len(saves)})", "≤ 0.5 s", blocked <= 0.5),
        Figure("from its step to durable, beside the training", f"{max(save.seconds for save in saves):.2f} s"),
        Figure("step after it : other steps, all included", f"{max(gaps[step] for step in disturbed if step in gaps) / calm:.2f} ({calm:.2f} s)"),
    ]  # fmt: skip


def machine() -> str:
    memory = psutil.virtual_memory().total / 2**30
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB, Python "
        f"{platform.python_version()}; load {load:.1f} when the bench began, {datetime.now(UTC):%Y-%m-%d}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="measure what supervision costs and how soon it acts")
    parser.add_argument("--rounds", type=int, default=3, help="plain and supervised trainings each")
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps of each of them")
    parser.add_argument("--kills", type=int, default=5, help="children killed on the toy backend")
    parser.add_argument(
        "--takeovers", type=int, default=3, help="children killed on the tiny base, with a standby and without"
    )
    parser.add_argument("--repeats", type=int, default=10, help="starts of each short command")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # spinning threads on busy cores would drown every difference
    print(f"{machine()}\n\n| what | measured | goal | |\n|---|---|---|---|", flush=True)
    figures: list[Figure] = []

    def show(more: list[Figure]) -> None:
        figures.extend(more)
        print("\n".join(figure.row() for figure in more), flush=True)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        rows = write_rows(folder / "talks.jsonl", 100)
        show(cost(folder, options.rounds, options.steps))
        show(start_up(folder, options.repeats))
        show(frames(folder))
        toy = a_spec(folder / "toy", rows, backend="toy", model="toy?step_seconds=0.002", steps=10**6, save_steps=25)
        show(reaction(folder, "toy", toy, options.kills))
        show(checkpoints(folder))
        show(takeover(folder, rows, options.takeovers))
    return 0 if all(figure.met is not False for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
