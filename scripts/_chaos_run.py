"""One run of the chaos gate: carried through all that its plan holds. What is left of it then, `_chaos_after.py` looks at."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from random import Random

import psutil

import _bench_memory
from _chaos_after import After
from _chaos_plan import Blow, Outside, Plan
from _chaos_seen import Problem, Seen, Sort, Truth
from backpropagate import checkpoints
from backpropagate.events import AttemptStarted, Event, FaultSeen, ModelReady, RunEnded, RunResumed, Step
from backpropagate.keep import journal, runs
from backpropagate_protocol.rundir import RunDir
from backpropagate_protocol.spec import RunSpec

PATIENCE = 900.0  # seconds for one supervisor; a run that hangs must end
GONE_PATIENCE = 60.0
_LOOK = 0.02


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
        self._memory = 0  # bytes, of the supervisor at hand
        self._killed = self._asked = False  # the supervisor at hand, by us
        self._struck: set[int] = set()  # attempts whose child was killed from outside

    def to_its_end(self, truth: Truth | None) -> Seen:
        """`truth` None: this is the undisturbed run itself."""
        done = False
        while not done:
            if self.seen.supervisors > 20 + 2 * len(self._plan.outside):  # it would go on for ever
                self._problem(Sort.ENDING, "it needed more supervisors than there were faults")
                break
            done = self._one_supervisor()
        self._after().look(truth)
        return self.seen

    def truth(self) -> Truth:
        return self._after().truth()

    def _after(self) -> After:
        return After(self._spec, self._run, self._events, self.seen, self._struck, self._problem)

    # --- one supervisor -----------------------------------------------------------------------------------------------

    def _one_supervisor(self) -> bool:
        """Whether the run is over."""
        self._descriptors, self._memory = [], 0
        self._killed = self._asked = False
        heard = len(self._events)
        self._attempt = 0  # what its predecessor's child was to meet, it is too late for
        process = self._start()
        try:
            self._accompany(process)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
        self._hear()
        self.seen.killed_supervisors += self._killed
        if self._memory:
            self.seen.memory.append(self._memory)
        if len(self._descriptors) >= 6 and self._spec.safety.standby == "off":  # a standby comes when it comes
            # A look may fall into the moment in which a file is open: the least of three is what is held.
            self.seen.descriptors.append(min(self._descriptors[-3:]) - min(self._descriptors[:3]))
        end = self._events[-1] if self._events else None
        if not isinstance(end, RunEnded):
            listened = any(isinstance(event, AttemptStarted) for event in self._events[heard:])
            return self._gone_without_a_word(process.returncode, listened=listened)
        if end.status == "completed":
            return True
        if end.status == "interrupted" and end.code == "RUNTIME_TRAINING_ABORTED":
            return False
        if "the same fault came twice at step" in end.message and self._same_twice():
            self.seen.repeated += 1
            return False
        self._problem(Sort.ENDING, f"ended as {end.status}, {end.code}: {end.message}")
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

    def _gone_without_a_word(self, code: int, *, listened: bool) -> bool:
        """Right if we killed it, or asked it to end before it began any child. What is lost by it, the comparison finds."""
        if self._killed:
            return False
        if self._asked and not listened:
            self.seen.unheard += 1
            return False
        self._problem(Sort.ENDING, f"a supervisor ended with {code} and left no word")
        return True

    def _same_twice(self) -> bool:
        """Whether the supervisor at hand met one fault twice at one step."""
        resumed = (n for n, event in enumerate(self._events) if isinstance(event, RunResumed))
        its_own = self._events[max(resumed, default=0) :]
        faults = Counter((event.kind, event.step) for event in its_own if isinstance(event, FaultSeen))
        return max(faults.values(), default=0) > 1

    def _accompany(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + PATIENCE
        while process.poll() is None:
            for event in self._hear():
                self._note(process, event)
            self._memory = max(self._memory, _bench_memory.held(process.pid))
            blow = self._blows.get(self._attempt)
            if blow is not None and self._due(blow):
                del self._blows[self._attempt]
                if self._strike(process, blow):
                    return
            if time.monotonic() > deadline:
                self._problem(Sort.ENDING, "a supervisor did not end")
                self._killed = True
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
                self._struck.add(self._attempt)
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
                self._asked = True
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
            self._struck.add(self._attempt)
            self._killed_at = time.time()
            child.kill()
        except psutil.NoSuchProcess:
            self._killed_at = 0.0

    def _kill_supervisor(self, process: subprocess.Popen[bytes]) -> None:
        child = self._pid
        self._struck.add(self._attempt)
        began = time.monotonic()
        self._killed = True
        process.kill()
        process.wait()
        while _lives(child):
            if time.monotonic() - began > GONE_PATIENCE:
                self._problem(Sort.LEFT_BEHIND, f"child {child} outlived its supervisor")
                return
            time.sleep(0.001)
        self.seen.orphaned.append(time.monotonic() - began)

    def _kill_one_that_starts(self, delay: float) -> None:
        """Another supervisor, killed at a random moment of its own start, of its search for a checkpoint or of its child's."""
        second = self._start()
        time.sleep(delay)
        for event in self._hear():
            self._note(second, event)
        self._struck.add(self._attempt)
        second.kill()
        second.wait()
        self.seen.killed_supervisors += 1
        self._struck.update(event.attempt for event in self._hear() if isinstance(event, AttemptStarted))

    def _spoil(self) -> None:
        """Damages one file of the newest checkpoint in one of five ways."""
        steps = checkpoints.steps(self._run)
        if not steps:
            return
        folder = self._run.checkpoint(steps[-1])
        self.seen.spoilt += 1
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

    # --- what is looked at meanwhile ----------------------------------------------------------------------------------

    def _problem(self, sort: Sort, text: str) -> None:
        self.seen.problems.append(Problem(sort, f"{self._name}: {text}"))

    def _look_at_supervisor(self, pid: int) -> None:
        try:
            supervisor = psutil.Process(pid)
            self._descriptors.append(supervisor.num_handles() if sys.platform == "win32" else supervisor.num_fds())
            dead = [child.pid for child in supervisor.children() if child.status() == psutil.STATUS_ZOMBIE]
        except psutil.Error:
            return
        if len(dead) > 1:  # one may have died this moment
            self._problem(Sort.LEFT_BEHIND, f"zombies {dead}")


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
