"""What supervision costs on MLX: a supervised training against mlx-lm's own trainer, the same data and settings, in turns.

    python scripts/bench_mlx.py [--model DIR] [--steps 40] [--rounds 3] [--rows 64]

Both get the same conversations of equal length, and compute the same shapes (mlx-lm sorts by length and pads to multiples of
32; left to that, rows of varied length would compare the padding), LoRA on every linear layer, AdamW, the same batch, no compiled kernels where there is no
Metal. Who begins changes from round to round. On an M-series Mac this is Metal; elsewhere MLX's CPU build. Prints a Markdown
table; the exit status is 1 if the goal is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil

from _bench_run import BATCH, MAX_LENGTH, RANK, TINY, Supervised, a_spec
from backpropagate.events import AttemptStarted, Step
from backpropagate_protocol.mlx_rules import ALLOW_CPU

ROOT = Path(__file__).resolve().parent.parent
GOAL = 0.98
_SKIPPED = 5  # first steps: caches, and on Metal the compilation of kernels


def write_rows(folder: Path, count: int) -> Path:
    """train.jsonl, every row of the same length in words."""
    folder.mkdir(parents=True)
    path = folder / "train.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for row in range(count):
            turns = [
                {"role": "user", "content": f"Count on from {row:04}, please, four numbers."},
                {"role": "assistant", "content": " ".join(f"{row + step:04}" for step in range(1, 5))},
            ]
            file.write(json.dumps({"messages": turns}) + "\n")
    return path


@dataclass(frozen=True)
class Pace:
    """Seconds for one optimizer step: by the clock (median), and of processor time (mean)."""

    wall: float
    cpu: float


def plain(model: str, data: Path, steps: int) -> Pace:
    """Of mlx-lm alone."""
    arguments = [model, str(data), str(steps), str(BATCH), str(RANK), str(MAX_LENGTH)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "plain_mlx.py"), *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=_environment(),
    )
    seen: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    cpu = seen["cpu"][_SKIPPED:]
    return Pace(_median_gap(seen["wall"][_SKIPPED:]), (cpu[-1] - cpu[0]) / (len(cpu) - 1))


def supervised(model: str, rows: Path, output: Path, steps: int) -> Pace:
    """Under the supervisor, from one step to the next: with all that is said in between."""
    spec = a_spec(output, rows, backend="mlx", model=model, steps=steps, save_steps=10**6)
    child: psutil.Process | None = None
    ends: list[float] = []
    cpu: list[tuple[int, float]] = []
    for event in Supervised(spec).events(0.05):
        if isinstance(event, AttemptStarted):
            child = psutil.Process(event.pid)
        elif isinstance(event, Step) and event.step > _SKIPPED:
            ends.append(event.time)
            if child is not None and event.step < steps:  # after the last one it may be gone
                times = child.cpu_times()
                cpu.append((event.step, times.user + times.system))
    (first, before), (last, after) = cpu[0], cpu[-1]
    return Pace(_median_gap(ends), (after - before) / (last - first))


def _median_gap(ends: list[float]) -> float:
    return statistics.median(later - sooner for sooner, later in pairwise(ends))


def _spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.3f} (median of {len(ratios)}, {min(ratios):.3f} to {max(ratios):.3f})"


def _environment() -> dict[str, str]:
    compiled = {} if platform.system() == "Darwin" else {"MLX_DISABLE_COMPILE": "1"}
    return {**os.environ, **compiled, ALLOW_CPU: "1", "OMP_NUM_THREADS": "1"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(TINY))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=64)
    options = parser.parse_args()
    os.environ.update(_environment())
    pairs: list[tuple[Pace, Pace]] = []
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        rows = write_rows(home / "data", options.rows)
        for number in range(options.rounds):
            theirs = plain(options.model, rows.parent, options.steps) if number % 2 == 0 else None
            ours = supervised(options.model, rows, home / f"out-{number}", options.steps)
            pairs.append((theirs or plain(options.model, rows.parent, options.steps), ours))
    ratios = [theirs.wall / ours.wall for theirs, ours in pairs]
    ratio = statistics.median(ratios)
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print("| what | measured | goal | |\n|---|---|---|---|")
    print(
        f"| step of mlx-lm's own trainer | {statistics.median(theirs.wall for theirs, _ in pairs) * 1000:.0f} ms |  |  |"
    )
    print(f"| supervised step | {statistics.median(ours.wall for _, ours in pairs) * 1000:.0f} ms |  |  |")
    verdict = "met" if ratio >= GOAL else "**short**"
    print(f"| speed, supervised : mlx-lm, by the clock | {_spread(ratios)} | ≥ {GOAL} | {verdict} |")
    print(f"| the same by processor time | {_spread([theirs.cpu / ours.cpu for theirs, ours in pairs])} |  |  |")
    return 0 if ratio >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
