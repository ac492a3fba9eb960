"""Faults of every kind, at random, until there were as many as wished; prints what became of the runs, and every figure.

    python scripts/chaos.py --faults 10000 --seed 1             the long one: toy backend, real processes
    python scripts/chaos.py --faults 50 --seed 1 --real         real training of the tiny base
    python scripts/chaos.py --faults 30 --seed 1 --jobs 2       a look

Runs go on side by side, each under a real supervisor in a process of its own. A seed decides which faults there are and at
which steps; the moments of blows "at any moment" are the machine's. Exit status 0: nothing was lost, left behind, untold or
different from the undisturbed run; times are told with their goals, but a busy machine is no problem. Asked to end (Ctrl-C, SIGTERM), it finishes the runs under way and reports.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random

from _bench_run import TINY, write_rows
from _chaos_plan import Odds, Plan, make_plan
from _chaos_report import report
from _chaos_run import ChaosRun
from _chaos_seen import Problem, Seen, Truth
from backpropagate_protocol.spec import DataSpec, LoraSpec, ModelSpec, RunSpec, SafetySpec, TrainSpec


@dataclass(frozen=True)
class Kind:
    """What is trained while the faults come down."""

    backend: str
    model: str
    steps: int
    children: int  # that a run loses
    save_steps: int
    batch: int
    hang_floor: float
    standby: float  # how many of the runs have one
    odds: Odds


TOY = Kind("toy", "toy", steps=121, children=20, save_steps=4, batch=8, hang_floor=5.0, standby=0.25, odds=Odds())
REAL = Kind(
    "cpu",
    str(TINY),
    steps=33,
    children=8,
    save_steps=3,
    batch=4,
    hang_floor=60.0,
    standby=0.0,
    odds=Odds(halving=0.06, silent=0.0),
)


class Gate:
    """The runs of one chaos gate, and what was seen of all of them."""

    def __init__(self, kind: Kind, faults: int, seed: int, folder: Path, minutes: float) -> None:
        self._kind, self._faults, self._seed, self._folder = kind, faults, seed, folder
        self._until = time.monotonic() + 60 * minutes
        self._lock = threading.Lock()
        self._next = 0
        self.seen = Seen()
        self._rows = _toy_rows(folder) if kind.backend == "toy" else write_rows(folder / "talks.jsonl", 26)
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        for variable in ("XDG_STATE_HOME", "LOCALAPPDATA"):
            self._environment[variable] = str(folder / "state")

    def enough(self) -> None:
        """Begin no further run."""
        self._until = 0.0

    def undisturbed(self) -> Truth:
        plan = Plan((), {}, 0)
        run = ChaosRun("undisturbed", self._spec("undisturbed", plan), plan, Random(0), self._environment)
        seen = run.to_its_end(None)
        if seen.problems:
            raise RuntimeError("; ".join(problem.text for problem in seen.problems))
        return run.truth()

    def work(self, truth: Truth) -> None:
        """Takes run after run until there were faults enough, or time is up."""
        while True:
            with self._lock:
                if sum(self.seen.faults.values()) >= self._faults or time.monotonic() > self._until:
                    return
                number, self._next = self._next, self._next + 1
            seen = self._one(number, truth)
            with self._lock:
                before = sum(self.seen.faults.values())
                self.seen.add(seen)
                now = sum(self.seen.faults.values())
                if before // 100 != now // 100 or seen.problems:
                    _say(f"{now} faults in {self.seen.runs} runs, {len(self.seen.problems)} problems")
                    for problem in seen.problems:
                        _say(problem.text)

    def _one(self, number: int, truth: Truth) -> Seen:
        random = Random(f"{self._seed}/{number}")
        plan = make_plan(random, self._kind.children, self._kind.steps, self._kind.save_steps, self._kind.odds)
        name = f"run-{number}"
        standby = "on" if random.random() < self._kind.standby else "off"
        spec = self._spec(name, plan, standby)
        seen = ChaosRun(name, spec, plan, random, self._environment).to_its_end(truth)
        if not seen.problems:
            _remove(self._folder / name)
        else:
            where = self._folder / name
            seen.problems = [Problem(problem.sort, f"{problem.text}; see {where}") for problem in seen.problems]
        return seen

    def _spec(self, name: str, plan: Plan, standby: str = "off") -> RunSpec:
        kind = self._kind
        return RunSpec(
            run_id=str(uuid.uuid4()),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            backend=kind.backend,
            output=str(self._folder / name),
            model=ModelSpec(name=kind.model, path=kind.model, load_in_4bit=False),
            data=DataSpec(source=str(self._rows)),
            lora=LoraSpec(r=8, alpha=16),
            train=TrainSpec(steps=kind.steps, effective_batch=kind.batch, batch_size=kind.batch, warmup_steps=0),
            safety=SafetySpec(
                save_steps=kind.save_steps,
                hang_floor=kind.hang_floor,
                max_respawns=10**6,
                max_halvings=10**6,
                standby=standby,
            ),
            faults=plan.inside,
        )


def _toy_rows(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"row {n} " + "x" * (n % 7)}) + "\n" for n in range(50)))
    return path


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="faults at random, until there were as many as wished")
    parser.add_argument("--faults", type=int, default=200, help="how many at least")
    parser.add_argument("--seed", type=int, default=1, help="which faults, and at which steps")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="begin no run after so long, however few there were"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs side by side")
    parser.add_argument("--real", action="store_true", help="real training of the tiny base instead of the toy")
    parser.add_argument("--folder", type=Path, help="for the runs; those that went wrong are kept in any case")
    options = parser.parse_args()
    kind = REAL if options.real else TOY
    began = time.monotonic()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    gate = Gate(kind, options.faults, options.seed, folder.absolute(), options.minutes)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: gate.enough())
    truth = gate.undisturbed()
    with ThreadPoolExecutor(options.jobs) as pool:
        for work in [pool.submit(gate.work, truth) for _ in range(options.jobs)]:
            work.result()
    if options.folder is None and not gate.seen.problems:
        _remove(folder)
    print(report(gate.seen, kind.hang_floor, time.monotonic() - began))
    for problem in gate.seen.problems:
        print(f"- {problem.text}")
    return 1 if gate.seen.problems else 0


if __name__ == "__main__":
    sys.exit(main())
