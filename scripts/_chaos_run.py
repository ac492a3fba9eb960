"""One run of the chaos gate: carried through all that its plan holds, then searched for anything lost or left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from random import Random

import psutil

from _chaos_plan import Blow, Outside, Plan
from backpropagate import checkpoints
from backpropagate.doors.process import RUN_ID_VARIABLE
from backpropagate.events import (
    AttemptStarted,
    CheckpointCommitted,
    CheckpointMissed,
    CheckpointQuarantined,
    Event,
    FaultSeen,
    ModelReady,
    Recovering,
    RunEnded,
    Step,
)
from backpropagate.keep import journal, locks, runs
from backpropagate_protocol import durable
from backpropagate_protocol.rundir import MANIFEST, PARTIAL, RunDir
from backpropagate_protocol.spec import RunSpec

PATIENCE = 900.0  # seconds for one supervisor; a run that hangs must end
GONE_PATIENCE = 60.0
_LOOK = 0.02
_ANNOUNCED = re.compile(r"^planned fault .*: (\w+)$", re.MULTILINE)
_HARMLESS = {"hold", "print_noise", "flood"}


@dataclass(frozen=True)
class Truth:
    """What the run comes to when nothing happens to it."""

    samples_seen: int
    order: int
    final_loss: float
    weights: dict[str, bytes]


@dataclass
class Seen:
    """What was seen of one run or of several. Times in seconds."""

    runs: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    supervisors: int = 0
    children: int = 0
    identical: int = 0  # runs whose weights are those of the undisturbed one to the bit
    halved: int = 0  # runs whose micro-batch was halved: the same samples, summed up in another order
    committed: int = 0
    put_aside: int = 0
    repeated: int = 0  # ended because one fault came twice at one step, as it should, and gone on with
    noticed: list[float] = field(default_factory=list)  # a killed child
    orphaned: list[float] = field(default_factory=list)  # how long a child outlived its killed supervisor
    hang_noticed: list[float] = field(default_factory=list)  # from the last sign of progress
    buried: list[float] = field(default_factory=list)  # from a hang noticed to the next thing done
    recovered: list[float] = field(default_factory=list)  # fault to first new step, back-off not counted
    taken_over: list[float] = field(default_factory=list)  # the same where a standby took over
    steps_lost: list[int] = field(default_factory=list)
    peak_memory: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)  # growth from a supervisor's first children to its last

    def add(self, other: Seen) -> None:
        for name, value in vars(other).items():
            if isinstance(value, Counter):
                getattr(self, name).update(value)
            elif isinstance(value, list):
                getattr(self, name).extend(value)
            else:
                setattr(self, name, getattr(self, name) + value)


class ChaosRun:
    """Its supervisor, in a process of its own, is started again as often as it is killed or gives the run back."""

    def __init__(self, name: str, spec: RunSpec, plan: Plan, random: Random, environment: dict[str, str]) -> None:
        self._name, self._spec, self._plan, self._random = name, spec, plan, random
        self._environment = environment
        self._run: RunDir = runs.create(spec)
        self._follower = journal.Follower(self._run.events)
        self._blows = dict(plan.outside)
        self.seen = Seen(runs=1)
        self._events: list[Event] = []
        self._attempt = self._pid = 0
        self._started = 0.0  # monotonic, when its newest child was heard of
        self._killed_at = 0.0  # wall clock, when that child was killed from outside; 0: it was not
        self._descriptors: list[int] = []

    def to_its_end(self, truth: Truth | None) -> Seen:
        """`truth` None: this is the undisturbed run itself."""
        done = False
        while not done:
            if self.seen.supervisors > 20 + 2 * len(self._plan.outside):  # it would go on for ever
                self._problem("it needed more supervisors than there were faults")
                break
            done = self._one_supervisor()
        self._look_at_times()
        self._look_for_leftovers()
        self._look_at_what_was_told()
        self._look_at_checkpoints()
        if truth is not None:
            self._compare(truth)
        return self.seen

    def truth(self) -> Truth:
        end = self._end()
        assert end is not None
        assert end.final_loss is not None
        return Truth(end.samples_seen, end.order, end.final_loss, self._weights())

    # --- one supervisor -----------------------------------------------------------------------------------------------

    def _one_supervisor(self) -> bool:
        """Whether the run is over."""
        self._descriptors = []
        process = self._start()
        try:
            self._accompany(process)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
        self._hear()
        if len(self._descriptors) >= 4 and self._spec.safety.standby == "off":  # a standby comes when it comes
            self.seen.descriptors.append(min(self._descriptors[-2:]) - min(self._descriptors[:2]))
        end = self._events[-1] if self._events else None
        if not isinstance(end, RunEnded):
            return self._gone_without_a_word(process.returncode)
        if end.status == "completed":
            return True
        if end.status == "interrupted" and end.code == "RUNTIME_TRAINING_ABORTED":
            return False
        if "the same fault came twice at step" in end.message and self._same_twice():
            self.seen.repeated += 1
            return False
        self._problem(f"ended as {end.status}, {end.code}: {end.message}")
        return True

    def _start(self) -> subprocess.Popen[bytes]:
        self.seen.supervisors += 1
        with open(self._run.supervisor_log, "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "backpropagate", "_supervise", str(self._run.path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=sys.platform != "win32",
            )

    def _gone_without_a_word(self, code: int) -> bool:
        if code in (-9, 9):
            return False
        self._problem(f"a supervisor ended with {code} and left no word")
        return True

    def _same_twice(self) -> bool:
        faults = [(event.kind, event.step) for event in self._events if isinstance(event, FaultSeen)]
        return max(Counter(faults).values()) > 1

    def _accompany(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + PATIENCE
        while process.poll() is None:
            for event in self._hear():
                self._note(process, event)
            blow = self._blows.get(self._attempt)
            if blow is not None and self._due(blow):
                del self._blows[self._attempt]
                if self._strike(process, blow):
                    return
            if time.monotonic() > deadline:
                self._problem("a supervisor did not end")
                return
            time.sleep(_LOOK)

    def _hear(self) -> list[Event]:
        events = self._follower.poll()
        self._events += events
        return events

    def _note(self, process: subprocess.Popen[bytes], event: Event) -> None:
        match event:
            case AttemptStarted():
                self._attempt, self._pid = event.attempt, event.pid
                self._started, self._killed_at = time.monotonic(), 0.0
                self._look_at_supervisor(process.pid)
            case FaultSeen() if self._killed_at and event.attempt == self._attempt:
                self.seen.noticed.append(event.time - self._killed_at)
                self._killed_at = 0.0
            case _:
                pass

    def _due(self, blow: Blow) -> bool:
        if blow.what is Outside.KILL_CHILD_ANY_TIME and time.monotonic() - self._started > blow.delay / 2:
            return True
        for event in reversed(self._events):
            if isinstance(event, AttemptStarted):
                return False
            if isinstance(event, Step | ModelReady) and event.step >= blow.before - 1:
                return True
        return False

    # --- blows --------------------------------------------------------------------------------------------------------

    def _strike(self, process: subprocess.Popen[bytes], blow: Blow) -> bool:
        """Whether the supervisor is gone by it."""
        self.seen.faults[blow.what.value] += 1
        match blow.what:
            case Outside.KILL_CHILD | Outside.KILL_CHILD_ANY_TIME | Outside.KILL_CHILD_AGAIN:
                self._kill_child()
            case Outside.STOP_CHILD:
                if sys.platform != "win32":
                    self._signal(self._pid, signal.SIGSTOP)
            case Outside.SPOIL_NEWEST:
                self._spoil()
                self._kill_child()
            case Outside.KILL_SUPERVISOR:
                self._kill_supervisor(process)
                return True
            case Outside.KILL_SUPERVISOR_AGAIN:
                self._kill_supervisor(process)
                self._kill_one_that_starts(blow.delay)
                return True
            case Outside.END_SUPERVISOR:
                process.terminate()
            case Outside.STOP_SUPERVISOR:
                if sys.platform != "win32":
                    self._signal(process.pid, signal.SIGSTOP)
                    self._kill_child()
                    self._killed_at = 0.0  # a supervisor that stands still notices nothing
                    time.sleep(blow.delay / 2)
                    self._signal(process.pid, signal.SIGCONT)
            case Outside.HANG_UP:
                if sys.platform != "win32":
                    self._signal(process.pid, signal.SIGHUP)
                self._kill_child()
        return False

    def _signal(self, pid: int, number: signal.Signals) -> None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass  # it was quicker

    def _kill_child(self) -> None:
        try:
            child = psutil.Process(self._pid)
            self._killed_at = time.time()
            child.kill()
        except psutil.NoSuchProcess:
            self._killed_at = 0.0

    def _kill_supervisor(self, process: subprocess.Popen[bytes]) -> None:
        child = self._pid
        began = time.monotonic()
        process.kill()
        process.wait()
        while _lives(child):
            if time.monotonic() - began > GONE_PATIENCE:
                self._problem(f"child {child} outlived its supervisor")
                return
            time.sleep(0.001)
        self.seen.orphaned.append(time.monotonic() - began)

    def _kill_one_that_starts(self, delay: float) -> None:
        """Another supervisor, killed at a random moment of its own start, of its search for a checkpoint or of its child's."""
        second = self._start()
        time.sleep(delay)
        for event in self._hear():
            self._note(second, event)
        second.kill()
        second.wait()

    def _spoil(self) -> None:
        """Damages one file of the newest checkpoint in one of five ways."""
        steps = checkpoints.steps(self._run)
        if not steps:
            return
        folder = self._run.checkpoint(steps[-1])
        victim = self._random.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
        content = bytearray(victim.read_bytes())
        how = self._random.randrange(5)
        if how == 0:
            victim.unlink()
        elif how == 1:
            victim.write_bytes(b"")
        elif how == 2:
            victim.write_bytes(bytes(len(content)))
        elif how == 3:
            victim.write_bytes(content[: len(content) // 2])
        else:
            content[self._random.randrange(len(content))] ^= 1 << self._random.randrange(8)
            victim.write_bytes(content)

    # --- what is looked at --------------------------------------------------------------------------------------------

    def _problem(self, text: str) -> None:
        self.seen.problems.append(f"{self._name}: {text}")

    def _end(self) -> RunEnded | None:
        return next((event for event in reversed(self._events) if isinstance(event, RunEnded)), None)

    def _look_at_supervisor(self, pid: int) -> None:
        try:
            supervisor = psutil.Process(pid)
            memory = supervisor.memory_info()
            self.seen.peak_memory.append(memory.rss)
            self._descriptors.append(supervisor.num_handles() if sys.platform == "win32" else supervisor.num_fds())
            dead = [child.pid for child in supervisor.children() if child.status() == psutil.STATUS_ZOMBIE]
        except psutil.Error:
            return
        if len(dead) > 1:  # one may have died this moment
            self._problem(f"zombies {dead}")

    def _look_at_times(self) -> None:
        fault: FaultSeen | None = None
        delay, last_sign, standby = 0.0, 0.0, False
        for event in self._events:
            match event:
                case FaultSeen():
                    if event.code == "RUNTIME_HANG":
                        self.seen.hang_noticed.append(event.time - last_sign)
                    fault, delay = event, 0.0
                case Recovering():
                    if fault is not None and fault.code == "RUNTIME_HANG":
                        self.seen.buried.append(event.time - fault.time)
                    self.seen.steps_lost.append(event.steps_lost)
                    delay += event.delay
                case AttemptStarted():
                    standby = event.standby
                case Step() if fault is not None:
                    taken = self.seen.taken_over if standby else self.seen.recovered
                    taken.append(event.time - fault.time - delay)
                    fault = None
                case RunEnded():
                    fault = None
                case _:
                    pass
            last_sign = event.time
        self.seen.children += sum(isinstance(event, AttemptStarted) for event in self._events)
        self.seen.committed += sum(isinstance(event, CheckpointCommitted) for event in self._events)
        self.seen.put_aside += sum(isinstance(event, CheckpointQuarantined) for event in self._events)

    def _look_for_leftovers(self) -> None:
        for process in psutil.process_iter():
            try:
                if process.environ().get(RUN_ID_VARIABLE) == self._spec.run_id:
                    self._problem(f"process {process.pid} was left behind")
            except (psutil.Error, OSError):
                continue
        output = self._run.output
        if (holder := locks.holder_of(output.lock)) is not None:
            self._problem(f"the lock is held by {holder}")
        for path in output.path.rglob("*"):
            if path.name.endswith((PARTIAL, ".tmp", ".holder")):
                self._problem(f"left on the disk: {path}")
        if any(self._run.staging.rglob("*")):
            self._problem("something was left in staging")

    def _look_at_what_was_told(self) -> None:
        """Every fault that a child says to have brought about is in the journal, and every line of that can be read."""
        log = self._run.log.read_text(errors="replace") if self._run.log.exists() else ""
        done = Counter(_ANNOUNCED.findall(log))
        self.seen.faults.update({kind: count for kind, count in done.items() if kind != "hold"})
        self.seen.faults["checkpoint damaged"] += self.seen.put_aside
        # Who is killed at any moment may be killed before it could tell.
        cut_off = (
            self.seen.faults[Outside.KILL_CHILD_ANY_TIME.value] + self.seen.faults[Outside.KILL_SUPERVISOR_AGAIN.value]
        )
        missed = cut_off + sum(isinstance(event, CheckpointMissed) for event in self._events)
        told = Counter(event.kind for event in self._events if isinstance(event, FaultSeen))
        expected = sum(count for kind, count in done.items() if kind not in _HARMLESS | {"disk_full", "disk_error"})
        if sum(told.values()) + cut_off < expected:
            self._problem(f"{expected} faults were brought about, {sum(told.values())} told")
        if missed < done["disk_full"] + done["disk_error"]:
            self._problem("a checkpoint that the disk did not take was not told")
        lines = self._run.events.read_bytes().splitlines()
        torn = sum(journal.decode_line(line) is None for line in lines)
        if torn > self.seen.supervisors - 1:
            self._problem(f"{torn} lines of the journal cannot be read")
        micro = {event.micro_batch * event.accumulation for event in self._events if isinstance(event, AttemptStarted)}
        if micro != {self._spec.train.effective_batch}:
            self._problem(f"effective batches {micro}")

    def _look_at_checkpoints(self) -> None:
        if checkpoints.newest_good(self._run).found is None:
            self._problem("no checkpoint loads")
        for event in self._events:
            if isinstance(event, CheckpointQuarantined) and not list(self._run.checkpoints.glob(f"{event.name}.*")):
                self._problem(f"{event.name} was put aside and is gone")

    def _weights(self) -> dict[str, bytes]:
        folder = self._run.adapter
        durable.verify_dir(folder)
        return {name: (folder / name).read_bytes() for name in durable.files_of(folder) if name != MANIFEST}

    def _compare(self, truth: Truth) -> None:
        end = self._end()
        if end is None or end.status != "completed" or end.final_loss is None:
            self._problem("it has no end")
            return
        if (end.samples_seen, end.order) != (truth.samples_seen, truth.order):
            self._problem("it saw other samples than the undisturbed run")
        batches = {event.micro_batch for event in self._events if isinstance(event, AttemptStarted)}
        same = self._weights() == truth.weights
        self.seen.identical += same
        self.seen.halved += len(batches) > 1
        if len(batches) == 1 and (not same or end.final_loss != truth.final_loss):
            self._problem("its weights are not those of the undisturbed run")
        elif abs(end.final_loss - truth.final_loss) > 1e-4:
            self._problem(f"its loss is {end.final_loss} instead of {truth.final_loss}")


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
