"""A real runner on real pipes, for tests: started as the supervisor starts it, spoken to in frames."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from backpropagate_protocol.framing import decoder_for_parent, encode
from backpropagate_protocol.jobs import Job, PreparedRef, TrainJob
from backpropagate_protocol.messages import DataReady, Done, Fault, Hello, RunJob, Stopped, ToChild, ToParent
from backpropagate_protocol.rundir import OutputDir, RunDir
from backpropagate_protocol.spec import DataSpec, ModelSpec, PlannedFault, RunSpec, SafetySpec, TrainSpec

DEADLINE = 60.0

M = TypeVar("M")


class Child:
    """One runner. Every message it sends is kept in `said`, in order.

    `light`: a folder with all that it may import beside the standard library.
    """

    def __init__(self, log: Path, warm: str = "toy", *, listening: bool = True, light: Path | None = None) -> None:
        self.log = log
        self.said: list[ToParent] = []
        self._arrived: SimpleQueue[ToParent | Exception | None] = SimpleQueue()
        command = [sys.executable, *(["-S"] if light else []), "-P", "-m", "backpropagate_runner"]
        command += ["--parent", str(os.getpid()), "--run-id", "test-run", "--warm", warm]
        with open(log, "ab") as stderr:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(light)} if light else None,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._listening = False
        if listening:
            self.listen()

    def listen(self) -> None:
        self._listening = True
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        decoder = decoder_for_parent()
        try:
            while data := os.read(self.process.stdout.fileno(), 1 << 16):
                for message in decoder.feed(data):
                    self._arrived.put(message)
            decoder.close()
        except Exception as error:
            self._arrived.put(error)
        self._arrived.put(None)

    def send(self, message: ToChild) -> None:
        self.send_bytes(encode(message))

    def send_bytes(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def wait_until(self, fact: Callable[[], bool]) -> None:
        """For facts that no message tells."""
        end = time.monotonic() + DEADLINE
        while not fact():
            assert time.monotonic() < end, "it did not come true"
            assert self.process.poll() is None or fact(), f"the child ended: {self.log.read_text()}"
            time.sleep(0.01)

    def do(self, job: Job) -> None:
        self.wait_for(Hello)
        self.send(RunJob(job))

    def messages(self) -> Iterator[ToParent]:
        """What comes from now on, until the child closes its end."""
        end = time.monotonic() + DEADLINE
        while True:
            try:
                message = self._arrived.get(timeout=max(0.0, end - time.monotonic()))
            except Empty:
                raise AssertionError(f"nothing came for {DEADLINE:.0f} s; so far {self.said[-5:]}") from None
            if message is None:
                return
            if isinstance(message, Exception):
                raise message
            self.said.append(message)
            yield message

    def wait_for(self, kind: type[M]) -> M:
        for message in self.messages():
            if isinstance(message, kind):
                return message
        raise AssertionError(f"it ended without {kind.__name__}: {self.said[-5:]}\n{self.log.read_text()}")

    def finish(self) -> Done | Fault | Stopped | None:
        """Reads to the end and reaps; the last word, or None if there was none."""
        for _ in self.messages():
            pass
        self.process.wait(DEADLINE)
        last = self.said[-1] if self.said else None
        return last if isinstance(last, (Done, Fault, Stopped)) else None

    def of(self, kind: type[M]) -> list[M]:
        return [m for m in self.said if isinstance(m, kind)]

    def hang_up(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.process.poll() is None:
            if sys.platform != "win32":
                os.kill(self.process.pid, signal.SIGCONT)
            self.process.kill()
        self.process.wait(DEADLINE)
        if self._listening:
            self._reader.join(DEADLINE)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass


def write_rows(path: Path, count: int = 50) -> Path:
    """Rows of varied length, in the plainest format."""
    lines = [msgspec.json.encode({"text": f"row {i} " + "abc" * (i % 7)}).decode() for i in range(count)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def train_job(
    folder: Path,
    *,
    run_id: str = "0001",
    rows: int = 50,
    steps: int = 20,
    effective_batch: int = 8,
    micro_batch: int = 4,
    attempt: int = 1,
    faults: tuple[PlannedFault, ...] = (),
    safety: SafetySpec | None = None,
    backend: str = "toy",
    model: str = "toy",
    resume_from: Path | None = None,
    prepared: PreparedRef | None = None,
) -> TrainJob:
    """A toy TrainJob in `folder`, its rows and its run directory made."""
    source = folder / "rows.jsonl"
    if not source.exists():
        write_rows(source, rows)
    run = OutputDir(folder / "output").run(run_id)
    run.path.mkdir(parents=True, exist_ok=True)
    spec = RunSpec(
        run_id=run_id,
        created="2026-01-01T00:00:00+00:00",
        backend=backend,
        output=str(folder / "output"),
        model=ModelSpec(name="toy", path=model),
        data=DataSpec(source=str(source)),
        train=TrainSpec(steps=steps, effective_batch=effective_batch, batch_size=micro_batch),
        safety=safety or SafetySpec(save_steps=5, keep_checkpoints=10),
        faults=faults,
    )
    return TrainJob(
        spec=spec,
        run_dir=str(run.path),
        attempt=attempt,
        micro_batch=micro_batch,
        accumulation=effective_batch // micro_batch,
        gradient_checkpointing=None,
        resume_from=str(resume_from) if resume_from else None,
        prepared=prepared,
    )


def run_of(job: TrainJob) -> RunDir:
    return RunDir(Path(job.run_dir))


def again(job: TrainJob, ready: DataReady, *, step: int, micro_batch: int | None = None) -> TrainJob:
    """The Job of the next attempt, from the checkpoint of `step` (0: from the start)."""
    micro = micro_batch or job.micro_batch
    return msgspec.structs.replace(
        job,
        attempt=job.attempt + 1,
        micro_batch=micro,
        accumulation=job.spec.train.effective_batch // micro,
        resume_from=str(run_of(job).checkpoint(step)) if step else None,
        prepared=PreparedRef(ready.path, ready.digest),
    )


@contextmanager
def runner(job: Job, folder: Path, warm: str = "toy") -> Iterator[Child]:
    """A child that has been given `job`."""
    with Child(folder / "runner.log", warm) as child:
        child.do(job)
        yield child
