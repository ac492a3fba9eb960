"""Toy runs under a real supervisor, for tests: in this process, or in one of its own that can be killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from backpropagate.drive.supervise import supervise
from backpropagate.events import AttemptStarted, CheckpointCommitted, Event, RunEnded
from backpropagate.keep import journal, runs
from backpropagate.outcome import Outcome
from backpropagate_protocol.rundir import OutputDir, RunDir
from backpropagate_protocol.spec import DataSpec, ModelSpec, PlannedFault, RunSpec, SafetySpec, TrainSpec
from tests.waiting import eventually

STEPS = 30
ROWS = 50  # 7 steps and a rest in an epoch of 8 samples a step

E = TypeVar("E", bound=Event)


def toy_spec(output: OutputDir, *faults: str, toy: str = "toy", steps: int = STEPS, **safety: object) -> RunSpec:
    """A spec of `steps` steps, a checkpoint at every fifth. Each fault is written `kind:step` or `kind:step:attempt`."""
    data = output.path.parent / "rows.jsonl"
    if not data.exists():
        data.write_text("".join(json.dumps({"text": f"row {i} " + "x" * (i % 7)}) + "\n" for i in range(ROWS)))
    settings: dict[str, object] = {"save_steps": 5, "hang_floor": 20.0, "grace": 20.0, **safety}
    return RunSpec(
        run_id=str(uuid.uuid4()),
        created="2026-01-01T00:00:00Z",
        backend="toy",
        output=str(output.path),
        model=ModelSpec(name="toy", path=toy),
        data=DataSpec(source=str(data)),
        train=TrainSpec(steps=steps, effective_batch=8, warmup_steps=0),
        safety=msgspec.convert(settings, SafetySpec),
        faults=tuple(planned(text) for text in faults),
    )


def planned(text: str) -> PlannedFault:
    """The fault that is written `kind:step` or `kind:step:attempt`."""
    kind, step, *attempt = text.split(":")
    return PlannedFault(kind=kind, step=int(step), attempt=int(attempt[0]) if attempt else 1)


class Story:
    """A sink that keeps every event."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def event(self, event: Event) -> None:
        self.events.append(event)

    def close(self) -> None: ...

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]


class At:
    """A sink that does one thing in the midst of a run: at the first event of which `when` is true."""

    def __init__(self, when: Callable[[Event], bool], do: Callable[[], object]) -> None:
        self._when, self._do = when, do
        self.done = False

    def event(self, event: Event) -> None:
        if not self.done and self._when(event):
            self.done = True
            self._do()

    def close(self) -> None: ...


def run_here(spec: RunSpec, gpu_script: Path | None = None, *, sinks: Sequence[At] = ()) -> tuple[Outcome, Story]:
    """Supervises in this process; the child is a real one."""
    story = Story()
    return supervise(runs.create(spec), [story, *sinks], gpu_script=gpu_script), story


def resume_here(run_dir: RunDir) -> tuple[Outcome, Story]:
    story = Story()
    return supervise(run_dir, [story], resumed=True), story


_PROGRAM = """
import sys
from pathlib import Path
from backpropagate.keep.runs import load_spec
from backpropagate.drive.waiting import supervise_when_free
from backpropagate_protocol.rundir import RunDir
run, wait = RunDir(Path(sys.argv[1])), load_spec(RunDir(Path(sys.argv[1]))).safety.wait_for_lock
sys.exit(supervise_when_free(run, [], print, owner_pipe=sys.argv[2] == "owner", wait=wait).exit_code)
"""


class Supervisor:
    """A supervisor in a process of its own. `owner`: this process holds its control pipe."""

    def __init__(self, run_dir: RunDir, *, owner: bool = False) -> None:
        self.run_dir = run_dir
        self._printed = ""
        command = [sys.executable, "-P", "-c", _PROGRAM, str(run_dir.path), "owner" if owner else "alone"]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if owner else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=sys.platform != "win32",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    @property
    def events(self) -> list[Event]:
        return list(journal.read(self.run_dir.events))

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    def until(self, fact: Callable[[], object], what: str) -> None:
        eventually(lambda: fact() or self.process.poll() is not None, what, lambda: self.events[-3:], seconds=150)
        assert fact(), f"the supervisor ended before {what}: {self.output()}"

    def until_saved(self, step: int) -> None:
        """Waits until the checkpoint of `step` is committed."""
        self.until(lambda: any(c.step >= step for c in self.of(CheckpointCommitted)), f"step {step} was saved")

    def child(self) -> int:
        """The pid of the newest child."""
        self.until(lambda: self.of(AttemptStarted), "a child was started")
        return self.of(AttemptStarted)[-1].pid

    def tell(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line)
        self.process.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def wait(self) -> int:
        """Its exit code."""
        return self.process.wait(timeout=150)

    def output(self) -> str:
        """What it printed; nothing while it runs."""
        assert self.process.stdout is not None
        if self.process.poll() is not None:
            self._printed += self.process.stdout.read().decode(errors="replace")
        return self._printed

    def ended(self) -> RunEnded:
        return self.of(RunEnded)[-1]

    def outcome(self) -> Outcome:
        """What `supervise` answered over there, from its last line."""
        told = msgspec.structs.asdict(self.ended())
        return msgspec.convert({name: told[name] for name in told.keys() & set(Outcome.__struct_fields__)}, Outcome)


@contextmanager
def supervisor(spec: RunSpec, *, owner: bool = False) -> Iterator[Supervisor]:
    with Supervisor(runs.create(spec), owner=owner) as started:
        yield started


def is_gone(pid: int) -> bool:
    """No process has this id, or only a zombie that its new parent has not yet fetched."""
    import psutil

    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
