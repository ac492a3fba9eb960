"""What the supervisor's process holds after a million frames, and how fast it can read them."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import anyio

import _bench_memory
from _bench_figure import Figure
from _bench_run import BATCH, Supervised, a_spec, write_rows
from backpropagate.doors.process import running
from backpropagate.events import Noticed
from backpropagate.keep import runs
from backpropagate_protocol.jobs import TrainJob
from backpropagate_protocol.messages import Hello, Progress, RunJob
from backpropagate_protocol.planned import announced
from backpropagate_protocol.spec import PlannedFault

_FLOOD = 100_000  # frames, of one planned flood
_FLOODS = 10
_MIB = 2**20


def million(folder: Path) -> list[Figure]:
    """A real child sends ten floods of progress frames to its real supervisor, one after the other.

    A flood is announced in the same pipe: once the journal has the n-th announcement, all frames before it were read.
    """
    last = 2 * _FLOODS + 2
    faults = (*(PlannedFault("flood", 2 * n, 1) for n in range(1, _FLOODS + 1)), PlannedFault("hold", last, 1))
    rows = write_rows(folder / "few.jsonl", 20)
    spec = a_spec(folder / "million", rows, backend="toy", model="toy", steps=last + 1, save_steps=5, faults=faults)
    run = Supervised(spec)
    held: list[tuple[int, int]] = []  # bytes, at most and at that moment, after so many floods
    began = ended = 0.0
    for event in run.events():
        if isinstance(event, Noticed) and announced(event.text) in ("flood", "hold"):
            began, ended = began or event.time, event.time
            held.append((_bench_memory.held(run.pid), _bench_memory.holds(run.pid)))
            if len(held) == _FLOODS + 1:
                break
    run.stop()
    if len(held) != _FLOODS + 1:
        raise RuntimeError(f"the run ended after {len(held)} floods; see {run.run.log}")
    (early, _), (late, now) = held[1], held[-1]
    frames = _FLOOD * _FLOODS
    return [
        Figure(
            f"parent after {frames:,} frames",
            f"{late / _MIB:.1f} MiB {_bench_memory.WORDS} ({now / _MIB:.1f} MiB then); read at "
            f"{frames / (ended - began):,.0f} / s",
            "≤ 40 MiB",
            late <= 40 * _MIB,
        ),
        Figure(
            f"its growth since {_FLOOD:,}", f"{(late - early) / _MIB:.2f} MiB", "≤ 1 MiB", late - early <= _MIB
        ),
    ]  # fmt: skip


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
