"""What a run of the chaos gate has left when all is over: anything lost, left behind, untold, or other than planned is a problem."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

import psutil

from _chaos_seen import Seen, Sort, Truth
from _chaos_told import NOISE, missed_in_silence, untold
from backpropagate import checkpoints
from backpropagate.doors.process import RUN_ID_VARIABLE
from backpropagate.events import (
    AttemptStarted,
    CheckpointCommitted,
    CheckpointQuarantined,
    Event,
    FaultSeen,
    Recovering,
    RunEnded,
    Step,
)
from backpropagate.keep import journal, locks
from backpropagate_protocol import durable
from backpropagate_protocol.rundir import PARTIAL, RunDir
from backpropagate_protocol.spec import RunSpec

_ANNOUNCED = re.compile(r"^planned fault .*: (\w+)$", re.MULTILINE)
_WEIGHTS = ".safetensors"


class After:
    """Of one run. `struck`: the attempts whose child was killed from outside. `problem` is told what is wrong."""

    def __init__(
        self, spec: RunSpec, run: RunDir, events: Sequence[Event], seen: Seen, struck: set[int], problem: Callable[[Sort, str], None]
    ) -> None:  # fmt: skip
        self._spec, self._run, self._events, self._seen = spec, run, events, seen
        self._struck, self._problem = struck, problem

    def look(self, truth: Truth | None) -> None:
        """`truth` None: this is the undisturbed run itself."""
        self._look_at_times()
        self._look_for_leftovers()
        self._look_at_what_was_told()
        self._look_at_checkpoints()
        if truth is not None:
            self._compare(truth)

    def truth(self) -> Truth:
        end = self._end()
        assert end is not None
        assert end.final_loss is not None
        return Truth(end.samples_seen, end.order, end.final_loss, *self._result())

    def _end(self) -> RunEnded | None:
        return next((event for event in reversed(self._events) if isinstance(event, RunEnded)), None)

    def _look_at_times(self) -> None:
        fault: FaultSeen | None = None
        delay, last_sign, standby = 0.0, 0.0, False
        for event in self._events:
            match event:
                case FaultSeen():
                    if event.code == "RUNTIME_HANG":
                        self._seen.hang_noticed.append(event.time - last_sign)
                    fault, delay = event, 0.0
                case Recovering():
                    if fault is not None and fault.code == "RUNTIME_HANG":
                        self._seen.buried.append(event.time - fault.time)
                    self._seen.steps_lost.append(event.steps_lost)
                    delay += event.delay
                case AttemptStarted():
                    standby = event.standby
                case Step() if fault is not None:
                    taken = self._seen.taken_over if standby else self._seen.recovered
                    taken.append(event.time - fault.time - delay)
                    fault = None
                case RunEnded():
                    fault = None
                case _:
                    pass
            last_sign = event.time
        self._seen.children += sum(isinstance(event, AttemptStarted) for event in self._events)
        self._seen.committed += sum(isinstance(event, CheckpointCommitted) for event in self._events)
        self._seen.put_aside += sum(isinstance(event, CheckpointQuarantined) for event in self._events)

    def _look_for_leftovers(self) -> None:
        for process in psutil.process_iter():
            try:
                if process.environ().get(RUN_ID_VARIABLE) == self._spec.run_id:
                    self._problem(Sort.LEFT_BEHIND, f"process {process.pid} was left behind")
            except (psutil.Error, OSError):
                continue
        output = self._run.output
        if (holder := locks.holder_of(output.lock)) is not None:
            self._problem(Sort.LEFT_BEHIND, f"the lock is held by {holder}")
        for path in output.path.rglob("*"):
            if path.name.endswith((PARTIAL, ".tmp", ".holder")):
                self._problem(Sort.LEFT_BEHIND, f"left on the disk: {path}")
        if any(self._run.staging.rglob("*")):
            self._problem(Sort.LEFT_BEHIND, "something was left in staging")

    def _look_at_what_was_told(self) -> None:
        """Every fault that befell a child is in the journal, and every line of that can be read."""
        log = self._run.log.read_text(errors="replace") if self._run.log.exists() else ""
        done = Counter(_ANNOUNCED.findall(log))
        self._seen.noise.update({kind: count for kind, count in done.items() if kind in NOISE})
        self._seen.faults.update({kind: count for kind, count in done.items() if kind != "hold" and kind not in NOISE})
        # Those damaged from outside were counted as blows; a save that damages itself is announced by nobody.
        self._seen.faults["checkpoint damaged by its save"] += max(0, self._seen.put_aside - self._seen.spoilt)
        for text in untold(self._events):
            self._problem(Sort.UNTOLD, text)
        for text in missed_in_silence(self._events, self._struck):
            self._problem(Sort.UNTOLD, text)
        lines = self._run.events.read_bytes().splitlines()
        torn = sum(journal.decode_line(line) is None for line in lines)
        if torn > self._seen.killed_supervisors:  # each in the midst of one line at most
            self._problem(Sort.UNTOLD, f"{torn} lines of the journal cannot be read")
        effective = {
            event.micro_batch * event.accumulation for event in self._events if isinstance(event, AttemptStarted)
        }
        if effective != {self._spec.train.effective_batch}:
            self._problem(Sort.RESULT, f"effective batches {effective}")

    def _look_at_checkpoints(self) -> None:
        if checkpoints.newest_good(self._run).found is None:
            self._problem(Sort.CHECKPOINT, "no checkpoint loads")
        for event in self._events:
            if isinstance(event, CheckpointQuarantined) and not list(self._run.checkpoints.glob(f"{event.name}.*")):
                self._problem(Sort.CHECKPOINT, f"{event.name} was put aside and is gone")

    def _result(self) -> tuple[dict[str, bytes], set[str]]:
        """The weights, byte by byte, and the names of all files: what is written about them may name its run."""
        folder = self._run.adapter
        durable.verify_dir(folder)
        names = set(durable.files_of(folder))
        return {name: (folder / name).read_bytes() for name in names if name.endswith(_WEIGHTS)}, names

    def _compare(self, truth: Truth) -> None:
        end = self._end()
        if end is None or end.status != "completed" or end.final_loss is None:
            self._problem(Sort.RESULT, "it has no end")
            return
        seen = self._seen
        seen.compared += 1
        if (end.samples_seen, end.order) == (truth.samples_seen, truth.order):
            seen.same_samples += 1
        else:
            self._problem(Sort.RESULT, "it saw other samples than the undisturbed run")
        weights, names = self._result()
        if names != truth.files:
            self._problem(
                Sort.RESULT, f"its result has other files than the undisturbed one: {sorted(names ^ truth.files)}"
            )
        halved = len({event.micro_batch for event in self._events if isinstance(event, AttemptStarted)}) > 1
        same = weights == truth.weights and bool(weights)
        seen.halved += halved
        seen.halved_and_identical += halved and same
        seen.identical += same and not halved
        if not halved and (not same or end.final_loss != truth.final_loss):
            self._problem(Sort.RESULT, "its weights are not those of the undisturbed run")
        elif abs(end.final_loss - truth.final_loss) > 1e-4:
            self._problem(Sort.RESULT, f"its loss is {end.final_loss} instead of {truth.final_loss}")
