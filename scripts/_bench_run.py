"""A run to look at, for the benches: rows to train on, a spec, and the run under its real supervisor."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Set
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import psutil

from backpropagate.events import Event
from backpropagate.keep import runs
from backpropagate.keep.journal import Follower
from backpropagate_protocol.rundir import RunDir
from backpropagate_protocol.spec import DataSpec, LoraSpec, ModelSpec, PlannedFault, RunSpec, SafetySpec, TrainSpec
from tiny_corpus import conversations

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "fixtures" / "tiny-base"
BATCH, RANK, MAX_LENGTH = 8, 16, 1024
PATIENCE = 600.0  # seconds for anything that is waited for; a bench that hangs must end


def write_rows(path: Path, count: int) -> Path:
    """Conversations of four questions each, so that a step has something to compute."""
    talks = conversations(count * 4, seed=7)
    with open(path, "w", encoding="utf-8") as file:
        for start in range(0, len(talks), 4):
            turns = [turn for talk in talks[start : start + 4] for turn in talk if turn[0] != "system"]
            file.write(json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}) + "\n")
    return path


def a_spec(output: Path, rows: Path, *, backend: str, model: str, steps: int, save_steps: int, faults: tuple[PlannedFault, ...] = ()) -> RunSpec:  # fmt: skip
    return RunSpec(
        run_id=str(uuid.uuid4()),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        backend=backend,
        output=str(output),
        model=ModelSpec(name=model, path=model, load_in_4bit=False),
        data=DataSpec(source=str(rows), max_length=MAX_LENGTH),
        lora=LoraSpec(preset="custom", r=RANK, alpha=2 * RANK),
        train=TrainSpec(steps=steps, effective_batch=BATCH, batch_size=BATCH),
        safety=SafetySpec(save_steps=save_steps, standby="off"),
        faults=faults,
    )


class Supervised:
    """A run under its real supervisor, in a process of its own, and what its journal says."""

    def __init__(self, spec: RunSpec, blocked: Set[signal.Signals] = frozenset()) -> None:
        """`blocked`: signals that neither the supervisor nor its children will ever receive; not on Windows."""
        self.run: RunDir = runs.create(spec)
        command = [sys.executable, "-P", "-m", "backpropagate", "_supervise", str(self.run.path)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=partial(_block, blocked) if blocked else None,
        )
        self._follower = Follower(self.run.events)

    def events(self, every: float = 0.02) -> Iterator[Event]:
        """Every event as it is written, until the supervisor is gone; looked for each `every` seconds.

        Looking costs processor time on the very machine that is measured: look seldom where only their times matter.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            gone = self._process.poll() is not None
            yield from self._follower.poll()
            if gone:
                return
            if time.monotonic() > deadline:
                self._process.kill()
                raise TimeoutError(f"the run in {self.run.path} did not end")
            time.sleep(every)

    @property
    def pid(self) -> int:
        """The supervisor's."""
        return self._process.pid

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE)

    def children(self) -> list[psutil.Process]:
        found: list[psutil.Process] = psutil.Process(self._process.pid).children()
        return found


def _block(signals: Set[signal.Signals]) -> None:
    """What is blocked stays so in the programs that a process becomes and starts."""
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
