"""What supervision costs and how soon it acts: every goal, measured in one go; prints a Markdown table with the verdicts.

    python scripts/bench_supervision.py                       all of it, some six minutes on two idle cores
    python scripts/bench_supervision.py --only death,hang     some of it

Needs the environment that scripts/test.py makes. Every figure comes from real processes: real training of the tiny base,
real pipes, real kills. What is compared is measured in turns, so that a machine that slows down slows both. Exit status 0:
no goal is short.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import _bench_cost
import _bench_faults
import _bench_goodput
import _bench_parent
import _bench_saves
import _bench_takeover
from _bench_figure import HEAD, Figure, machine
from _bench_run import write_rows


@dataclass
class Bench:
    """Where it works, and how much of it; what two rows need is measured once."""

    folder: Path
    rounds: int
    steps: int
    kills: int
    takeovers: int

    @cached_property
    def rows(self) -> Path:
        return write_rows(self.folder / "talks.jsonl", 100)

    @cached_property
    def pairs(self) -> _bench_takeover.Pairs:
        return _bench_takeover.pairs(self.folder, self.rows, self.takeovers)


CASES: dict[str, Callable[[Bench], list[Figure]]] = {
    "death": lambda b: _bench_faults.deaths(b.folder, b.rows, b.kills),
    "hang": lambda b: _bench_faults.hangs(b.folder, b.rows),
    "ladder": lambda b: _bench_faults.ladder(b.folder, b.rows),
    "standby": lambda b: _bench_takeover.takeover(b.pairs),
    "goodput": lambda b: _bench_goodput.goodput(b.folder, b.rows, b.pairs, kills=20),
    "checkpoints": lambda b: _bench_saves.share(b.folder),
    "large": lambda b: _bench_saves.large(b.folder),
    "step": lambda b: _bench_cost.cost(b.folder, b.rounds, b.steps),
    "parent": lambda b: _bench_parent.million(b.folder),
    "frames": lambda b: _bench_parent.frames(b.folder),
    "start": lambda b: _start_up(b.folder),
}


def _start_up(folder: Path, repeats: int = 10) -> list[Figure]:
    def best(*arguments: str) -> float:
        taken = []
        for _ in range(repeats):
            began = time.perf_counter()
            subprocess.run([sys.executable, *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=True)
            taken.append(time.perf_counter() - began)
        return min(taken)

    bare = best("-c", "pass")
    help_page = best("-m", "backpropagate", "--help")
    listing = best("-m", "backpropagate", "list-runs", "--output", str(folder / "deaths"))
    return [
        Figure("`backprop --help` : bare Python", f"{help_page / bare:.1f} ({1000 * bare:.0f} ms)", "≤ 5", help_page / bare <= 5),
        Figure("`backprop list-runs` : bare Python", f"{listing / bare:.1f}"),
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(CASES), help=f"rows, separated by commas: {', '.join(CASES)}")
    parser.add_argument("--rounds", type=int, default=3, help="plain and supervised trainings each")
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps of each of them")
    parser.add_argument("--kills", type=int, default=120, help="children killed on the toy backend")
    parser.add_argument("--takeovers", type=int, default=5, help="children killed on the tiny base, each way")
    options = parser.parse_args(arguments)
    wanted = options.only.split(",")
    if unknown := sorted(set(wanted) - set(CASES)):
        parser.error(f"there is no row {unknown[0]!r}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # spinning threads on busy cores would drown every difference
    print(f"{machine('when the bench began')}\n\n{HEAD}", flush=True)
    short = False
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        bench = Bench(Path(temporary), options.rounds, options.steps, options.kills, options.takeovers)
        for name, measure in CASES.items():
            if name not in wanted:
                continue
            began = time.monotonic()
            for figure in measure(bench):
                print(figure.row(), flush=True)
                short = short or figure.met is False
            print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return int(short)


if __name__ == "__main__":
    sys.exit(main())
