"""The supervisor's judgement: what happened goes in, what to do comes out. No I/O, no clock, no randomness.

The states and who leaves them are drawn in docs/supervision.md. Invariants, each with a property test:

1. At most one child: Spawn is answered only when the last one has exited.
2. micro-batch times accumulation is the effective batch in every Assign.
3. Between two newly committed steps there are at most max_respawns counted respawns, and in the whole run at most
   max_halvings halvings for want of memory.
4. After StopAsked, every way leads to Finish: by the ladder's last rung at the latest.
5. Nothing follows Finish.

This file is long because a state machine is read in one piece; arithmetic, deadlines, ladder, heat and verdicts are files
of their own.
"""

from __future__ import annotations

from enum import Enum
from typing import assert_never

from backpropagate import deadlines, ladder
from backpropagate.decisions import (
    Action,
    Assign,
    Begin,
    CardKnown,
    CardLimits,
    CheckpointFound,
    Death,
    DumpStacks,
    Emit,
    FindCheckpoint,
    Finish,
    Found,
    Input,
    Kill,
    Quarantine,
    RunnerExited,
    RunnerGarbled,
    RunnerSaid,
    Send,
    SensorLost,
    Spawn,
    SpawnFailed,
    StopAsked,
    Temperature,
    Terminate,
    Tick,
)
from backpropagate.events import FaultSeen, Heat, Noticed, Recovering, StopRequested
from backpropagate.plan import Start
from backpropagate.thermal import HeatLevel, Thermal
from backpropagate.verdict import Again, Cause, GiveUp, Kind, Rules, Standing, judge
from backpropagate_protocol.errors import CATALOGUE, ExitCode
from backpropagate_protocol.jobs import PreparedRef
from backpropagate_protocol.messages import (
    PROTOCOL_VERSION,
    CheckpointFailed,
    CheckpointSaved,
    DataReady,
    Done,
    Fault,
    Hello,
    Notice,
    Phase,
    PhaseChanged,
    Progress,
    Started,
    Stop,
    Stopped,
    ToParent,
    TrainResult,
)
from backpropagate_protocol.spec import RunSpec

_BACKOFF = (0.0, 0.5, 2.0, 8.0, 30.0)  # seconds before the n-th respawn without progress
_DISK_PATIENCE = 3  # checkpoints that failed in a row
_KILL_PATIENCE = 15.0  # from Kill to an exit; after that the kernel itself holds the process
_DUMP_TIME = 2.0  # for writing the stacks
_COOLING_PATIENCE = 1800.0
_BLIND_COOLING = 300.0  # if the sensor is lost while we wait for the card to cool


class State(Enum):
    """Where a run is, as the supervisor sees it."""

    NEW = "new"
    READYING = "readying"  # a child starts; its Job waits for Hello and for the checkpoint
    WORKING = "working"  # it has its Job
    STOPPING = "stopping"  # it was asked to save and stop
    KILLING = "killing"  # it was killed; its exit is awaited
    CLOSING = "closing"  # it said Done; its exit is awaited
    WAITING = "waiting"  # no child; the next one is due at a known time
    COOLING = "cooling"  # no child; the card must cool down first
    ENDED = "ended"


class Timer(Enum):
    """What can fall due."""

    PHASE = "phase"
    LADDER = "ladder"
    KILL = "kill"  # after the stacks were dumped
    EXIT = "exit"  # a killed child does not go away
    CLOSE = "close"
    RESPAWN = "respawn"
    COOL = "cool"


class Policy:
    """One run's judgement. `handle` takes one input and returns the actions, in order."""

    def __init__(self, spec: RunSpec, start: Start, jitter: float = 0.0) -> None:
        """`jitter` in [0, 1) stretches the delays of respawns, so that several machines do not act in step."""
        self._run_id, self._safety, self._jitter = spec.run_id, spec.safety, jitter
        self._rules = Rules(spec.safety.oom_recovery, spec.safety.max_halvings, spec.safety.max_respawns)
        self.effective = spec.train.effective_batch
        self.micro = start.micro_batch
        self.gradient_checkpointing = start.gradient_checkpointing
        self.prepared: PreparedRef | None = start.prepared
        self._card_pending = start.wait_for_card
        self.state = State.NEW
        self.attempt = start.attempts
        self.recoveries = 0
        self.halvings = 0
        self.committed: Found | None = None
        self.result: TrainResult | None = None
        self.last_step = 0
        self.total_steps = 0
        self.device = ""
        self._respawns = 0
        self._causes: list[Cause] = []
        self._timers: dict[Timer, float] = {}
        self._rungs: list[tuple[float, ladder.Rung]] = []
        self._steps = deadlines.StepTimes()
        self._thermal = Thermal(spec.safety)
        self._blind = False
        self._out: list[Action] = []
        self._forget_attempt()

    def _forget_attempt(self) -> None:
        self._hello = False
        self._phase = Phase.IMPORT
        self._trained = False
        self._cause: Cause | None = None  # why the child is being ended
        self._stop: StopAsked | None = None  # someone wants the whole run to end
        self._search_pending = False
        self._announce: str | None = None

    @property
    def wake_at(self) -> float | None:
        """When the next Tick is needed at the latest."""
        return min(self._timers.values(), default=None)

    @property
    def stop_asked(self) -> bool:
        """Someone wants the run to end."""
        return self._stop is not None

    def handle(self, input: Input) -> list[Action]:
        """What to do about it. Anything may come at any time; what has no meaning in a state is passed over."""
        self._out = []
        if self.state is State.ENDED:
            return self._out
        match input:
            case Begin():
                self._begin(input.now)
            case RunnerSaid():
                self._said(input.now, input.message)
            case RunnerGarbled():
                self._fault(input.now, self._own_cause(Kind.PROTOCOL, "RUNTIME_PROTOCOL", input.text))
            case RunnerExited():
                self._exited(input.now, input.death)
            case SpawnFailed():
                self._exited(input.now, Death(None, f"could not be started: {input.text}"))
            case CheckpointFound():
                self._checkpoint(input.now, input.found)
            case Tick():
                self._tick(input.now, input.late)
            case StopAsked():
                self._stop_asked(input)
            case CardKnown():
                self._card_pending = False
                self.micro = self.micro if input.micro_batch is None else input.micro_batch
                self._assign_if_ready(input.now)
            case CardLimits():
                self._thermal.limits(input.slowdown, input.shutdown)
            case Temperature():
                self._temperature(input.now, input.celsius)
            case SensorLost():
                self._sensor_lost(input.now, input.text)
            case _:
                assert_never(input)
        return self._out

    # --- from one child to the next ---------------------------------------------------------------------------------

    def _begin(self, now: float) -> None:
        if self.state is State.NEW:
            self._spawn(now)
            self._search()

    def _spawn(self, now: float) -> None:
        self.state = State.READYING
        self.attempt += 1
        self._timers = {Timer.PHASE: now + deadlines.HELLO}
        self._out.append(Spawn(self.attempt))

    def _search(self) -> None:
        self._search_pending = True
        self._out.append(FindCheckpoint())

    def _checkpoint(self, now: float, found: Found | None) -> None:
        if not self._search_pending:
            return
        self._search_pending = False
        self.committed = found
        if found is not None and found.total_steps:
            self.total_steps = found.total_steps
        resume_step = found.step if found else 0
        if self._announce is not None:
            self._emit(
                Recovering(
                    time=0.0,
                    run_id=self._run_id,
                    reason=self._announce,
                    delay=max(0.0, self._timers.get(Timer.RESPAWN, now) - now),
                    micro_batch=self.micro,
                    accumulation=self.effective // self.micro,
                    checkpoint=found.name if found else None,
                    resume_step=resume_step,
                    steps_lost=max(0, self.last_step - resume_step),
                )
            )
            self._announce = None
        self.last_step = resume_step
        self._assign_if_ready(now)

    def _assign_if_ready(self, now: float) -> None:
        if self.state is not State.READYING or not self._hello:
            return
        if self._card_pending or self._search_pending:
            self._timers.pop(Timer.PHASE, None)  # it is we who are not ready
            return
        self.state = State.WORKING
        self._enter(now, Phase.IMPORT)
        self._out.append(
            Assign(
                self.attempt,
                self.micro,
                self.effective // self.micro,
                self.gradient_checkpointing,
                self.committed,
                self.prepared,
            )
        )

    def _exited(self, now: float, death: Death) -> None:
        if self.state in (State.NEW, State.WAITING, State.COOLING):
            return
        if self.result is not None:
            self._finish(Finish("completed", ExitCode.DONE))
            return
        if self._stop is not None:
            self._finish_stopped(self._stop)
            return
        cause = self._cause
        if cause is None and not self._hello and (death.code is None or death.code > 0):
            # It ended by itself before its first word: what it needs is not there, and will not be there next time.
            text = f"the runner {death.text} before it said anything"
            cause = self._own_cause(Kind.MISMATCH, "DEP_RUNNER_MISSING", text)
            self._emit_fault(cause, death.text)
        if cause is None:
            code, kind = ("RUNTIME_HOST_OOM", Kind.HOST_OOM) if death.host_oom else ("RUNTIME_CHILD_DIED", Kind.DIED)
            cause = self._own_cause(kind, code, f"the training process {death.text}")
            self._emit_fault(cause, death.text)
        self._judge(now, cause)

    def _judge(self, now: float, cause: Cause) -> None:
        at = Standing(
            micro=self.micro,
            effective=self.effective,
            halvings=self.halvings,
            respawns=self._respawns,
            checkpointing_can_help=(self.gradient_checkpointing is None and not self.device.startswith("cuda"))
            or self.gradient_checkpointing is False,
            earlier=tuple(self._causes),
        )
        verdict = judge(cause, at, self._rules)
        self._causes.append(cause)
        if isinstance(verdict, GiveUp):
            self._finish(Finish(verdict.status, verdict.exit_code, verdict.code, verdict.message, verdict.suggestion))
            return
        self._respawn(now, cause, verdict)

    def _respawn(self, now: float, cause: Cause, verdict: Again) -> None:
        self._forget_attempt()
        self._timers = {}
        self._rungs = []
        self.recoveries += 1
        self.micro = verdict.micro
        self.halvings += verdict.halving
        if verdict.gradient_checkpointing:
            self.gradient_checkpointing = True
        delay = 0.0
        if verdict.counts:
            delay = _BACKOFF[min(self._respawns, len(_BACKOFF) - 1)] * (1 + self._jitter)
            self._respawns += 1
        self._announce = cause.message
        if verdict.cool_first and not self._thermal.is_cool:
            self.state = State.COOLING
            self._timers[Timer.COOL] = now + (_BLIND_COOLING if self._blind else _COOLING_PATIENCE)
            self._search()
            return
        self.state = State.WAITING
        self._timers[Timer.RESPAWN] = now + delay
        self._search()
        if delay <= 0:
            self._spawn(now)

    # --- what the child says ----------------------------------------------------------------------------------------

    def _said(self, now: float, message: ToParent) -> None:
        if self.state in (State.NEW, State.WAITING, State.COOLING):
            return
        match message:
            case Hello():
                self._said_hello(now, message)
            case PhaseChanged():
                self._enter(now, message.phase)
            case DataReady():
                self.prepared = PreparedRef(message.path, message.digest)
            case Started():
                self._said_started(now, message)
            case Progress():
                self._said_progress(now, message)
            case CheckpointSaved():
                self._said_saved(now, message)
            case CheckpointFailed():
                self._said_not_saved(now, message)
            case Fault():
                self._fault(now, self._reported(message))
            case Stopped():
                if self.state in (State.WORKING, State.READYING):
                    self._timers[Timer.PHASE] = now + deadlines.TEARDOWN
            case Done():
                self._said_done(now, message)
            case Notice():
                pass  # for people; supervise passes it on
            case _:
                assert_never(message)

    def _said_hello(self, now: float, hello: Hello) -> None:
        if hello.protocol != PROTOCOL_VERSION:
            text = f"the runner speaks protocol {hello.protocol}, this supervisor {PROTOCOL_VERSION}"
            self._fault(now, self._own_cause(Kind.MISMATCH, "RUNTIME_PROTOCOL", text))
            return
        self._hello = True
        self._assign_if_ready(now)

    def _said_started(self, now: float, started: Started) -> None:
        self.device, self.total_steps = started.device, started.total_steps
        asked = (self.micro, self.effective // self.micro, self.committed.step if self.committed else 0)
        got = (started.micro_batch, started.accumulation, started.step)
        if self.state is State.WORKING and got != asked:
            text = f"the runner began with (micro-batch, accumulation, step) {got} instead of {asked}"
            self._fault(now, self._own_cause(Kind.MISMATCH, "RUNTIME_PROTOCOL", text))
            return
        self._enter(now, Phase.FIRST_STEP)

    def _said_progress(self, now: float, progress: Progress) -> None:
        if self._trained:  # the first step compiles, allocates and warms up: it teaches nothing
            self._steps.add(progress.step_seconds)
        self._trained = True
        self.last_step, self.total_steps = progress.step, progress.total_steps
        self._enter(now, Phase.TRAIN)

    def _said_saved(self, now: float, saved: CheckpointSaved) -> None:
        if self.committed is None or saved.step > self.committed.step:
            self._respawns = 0
        self.committed = Found(saved.name, saved.step, saved.samples_seen, saved.order, self.total_steps, saved.loss)
        self.last_step = max(self.last_step, saved.step)
        self._enter(now, Phase.TRAIN)

    def _said_not_saved(self, now: float, failed: CheckpointFailed) -> None:
        self._enter(now, Phase.TRAIN)
        if failed.failures >= _DISK_PATIENCE and self.state is State.WORKING:
            text = f"{failed.failures} checkpoints in a row could not be written: {failed.message}"
            self._pause(now, self._own_cause(Kind.DISK, "RUNTIME_DISK_FULL", text), "disk", save=False)

    def _said_done(self, now: float, done: Done) -> None:
        if isinstance(done.result, TrainResult) and self.state is not State.KILLING:
            self.result = done.result
            self.last_step = done.result.step
            self.state = State.CLOSING
            self._timers = {Timer.CLOSE: now + deadlines.TEARDOWN}
            self._rungs = []

    def _enter(self, now: float, phase: Phase) -> None:
        """A sign of progress: the phase's deadline begins again."""
        self._phase = phase
        if self.state is State.WORKING:
            self._timers[Timer.PHASE] = now + deadlines.limit(phase, self._safety, self._steps)

    # --- ending a child ---------------------------------------------------------------------------------------------

    def _reported(self, fault: Fault) -> Cause:
        return Cause(
            Kind(fault.kind.value),
            fault.code,
            fault.message,
            fault.step,
            self.attempt,
            fault.suggestion,
            fault.traceback,
            fault.needed,
            fault.free,
            self._trained,
        )

    def _own_cause(self, kind: Kind, code: str, message: str) -> Cause:
        return Cause(kind, code, message, self.last_step, self.attempt, trained=self._trained)

    def _fault(self, now: float, cause: Cause) -> None:
        """The child is of no more use: note why, and end it."""
        if self.state not in (State.READYING, State.WORKING, State.STOPPING):
            return
        self._emit_fault(cause)
        if self._cause is None:
            self._cause = cause
        if cause.kind is Kind.CHECKPOINT and self.committed is not None:
            self._out.append(Quarantine(self.committed.name, cause.message))
        self._kill(now, cause.message)

    def _kill(self, now: float, reason: str) -> None:
        self.state = State.KILLING
        self._rungs = []
        self._timers = {Timer.EXIT: now + _KILL_PATIENCE}
        self._out.append(Kill(reason))

    def _pause(self, now: float, cause: Cause, reason: str, *, save: bool) -> None:
        """Ends the child politely for a cause of ours; `_exited` then judges the cause."""
        self._emit_fault(cause)
        self._cause = cause
        self._ask(now, reason, save=save)

    def _ask(self, now: float, reason: str, *, save: bool) -> None:
        self._emit(StopRequested(time=0.0, run_id=self._run_id, reason=reason, save=save))
        if self.state is State.READYING:
            self._kill(now, reason)  # it has no Job yet, so there is nothing to save
            return
        self.state = State.STOPPING
        self._rungs = ladder.rungs(now, self._safety.grace if save else None)
        self._timers = {Timer.LADDER: self._rungs[0][0]}
        self._out.append(Send(Stop(reason, save)))

    def _stop_asked(self, asked: StopAsked) -> None:
        again = self._stop is not None
        self._stop = self._stop or asked
        match self.state:
            case State.NEW | State.WAITING | State.COOLING:
                self._emit(StopRequested(time=0.0, run_id=self._run_id, reason=asked.reason, save=False))
                self._finish_stopped(self._stop)
            case State.READYING | State.WORKING | State.STOPPING if again or asked.kill:
                self._emit(StopRequested(time=0.0, run_id=self._run_id, reason=asked.reason, save=False))
                self._kill(asked.now, f"{asked.reason}, now")
            case State.READYING | State.WORKING:
                # Before its first step there is nothing that a save would keep.
                self._ask(asked.now, asked.reason, save=self._phase not in _BEFORE_TRAINING)
            case State.STOPPING | State.KILLING | State.CLOSING | State.ENDED:
                pass  # it is ending already; `_stop` decides what follows
            case _:
                assert_never(self.state)

    def _finish_stopped(self, asked: StopAsked) -> None:
        kept = f"step {self.committed.step} is kept" if self.committed else "nothing was saved yet"
        info = CATALOGUE["RUNTIME_TRAINING_ABORTED"]
        self._finish(
            Finish("interrupted", asked.exit_code, info.code, f"stopped by {asked.reason}; {kept}", info.remedy)
        )

    def _finish(self, finish: Finish) -> None:
        self.state = State.ENDED
        self._timers = {}
        self._out.append(finish)

    # --- time -------------------------------------------------------------------------------------------------------

    def _tick(self, now: float, late: float) -> None:
        if late > 0:
            self._timers = {timer: due + late for timer, due in self._timers.items()}
            self._rungs = [(due + late, rung) for due, rung in self._rungs]
        for timer in sorted(self._timers, key=self._timers.__getitem__):
            if self._timers.get(timer, now + 1) <= now:
                del self._timers[timer]
                self._due(now, timer)

    def _due(self, now: float, timer: Timer) -> None:
        match timer:
            case Timer.PHASE:
                self._hang(now)
            case Timer.LADDER:
                self._climb(now)
            case Timer.KILL:
                self._kill(now, "hang")
            case Timer.CLOSE:
                self._timers[Timer.EXIT] = now + _KILL_PATIENCE
                self._out.append(Kill("it did not end after its work was done"))
            case Timer.EXIT:
                self._unkillable()
            case Timer.RESPAWN:
                self._spawn(now)
            case Timer.COOL:
                self._not_cooling(now)
            case _:
                assert_never(timer)

    def _hang(self, now: float) -> None:
        text = f"no progress in phase {self._phase.value} within its deadline"
        cause = self._own_cause(Kind.HANG, "RUNTIME_HANG", text)
        self._emit_fault(cause)
        self._cause = cause
        self.state = State.KILLING
        self._timers = {Timer.KILL: now + _DUMP_TIME}
        self._out.append(DumpStacks())

    def _climb(self, now: float) -> None:
        _, rung = self._rungs.pop(0)
        match rung:
            case ladder.Rung.TERMINATE:
                self._out.append(Terminate())
            case ladder.Rung.ABORT:
                self._out.append(DumpStacks())
            case ladder.Rung.KILL:
                self._kill(now, "it did not stop when asked")
            case _:
                assert_never(rung)
        if self._rungs:
            self._timers[Timer.LADDER] = self._rungs[0][0]

    def _unkillable(self) -> None:
        if self.result is not None:
            self._finish(Finish("completed", ExitCode.DONE))
            return
        info = CATALOGUE["RUNTIME_GPU_LOST"]
        text = "the training process cannot be killed: the driver holds it"
        self._finish(Finish("failed", info.exit, info.code, text, info.remedy))

    # --- heat -------------------------------------------------------------------------------------------------------

    def _temperature(self, now: float, celsius: int) -> None:
        self._blind = False
        level = self._thermal.read(celsius)
        if self.state is State.COOLING and self._thermal.is_cool:
            self._emit(Heat(time=0.0, run_id=self._run_id, level=HeatLevel.COOL, celsius=celsius))
            self.state = State.WAITING
            self._spawn(now)
            return
        if level is None or self.state not in (State.READYING, State.WORKING, State.STOPPING):
            return
        if level in (HeatLevel.WARNING, HeatLevel.COOL):
            self._emit(Heat(time=0.0, run_id=self._run_id, level=level, celsius=celsius))
            return
        text = f"the GPU reached {celsius} °C"
        cause = self._own_cause(Kind.OVERHEAT, "RUNTIME_GPU_TEMPERATURE_CRITICAL", text)
        if level is HeatLevel.KILL:
            self._emit(Heat(time=0.0, run_id=self._run_id, level=level, celsius=celsius))
            self._fault(now, cause)
        elif self.state is not State.STOPPING:
            self._emit(Heat(time=0.0, run_id=self._run_id, level=level, celsius=celsius))
            self._pause(now, cause, "heat", save=self._phase not in _BEFORE_TRAINING)

    def _sensor_lost(self, now: float, text: str) -> None:
        if not self._blind:
            self._blind = True
            warning = f"the GPU's sensors cannot be read ({text}); the run goes on without them"
            self._emit(Noticed(time=0.0, run_id=self._run_id, level="warning", text=warning))
        if self.state is State.COOLING:
            self._timers[Timer.COOL] = now + _BLIND_COOLING

    def _not_cooling(self, now: float) -> None:
        if self._blind:
            self.state = State.WAITING
            self._spawn(now)
            return
        info = CATALOGUE["RUNTIME_GPU_TEMPERATURE_CRITICAL"]
        text = f"the GPU is still at {self._thermal.celsius} °C after {_COOLING_PATIENCE / 60:.0f} minutes of rest"
        self._finish(Finish("interrupted", info.exit, info.code, text, info.remedy))

    # --- telling ----------------------------------------------------------------------------------------------------

    def _emit(self, event: FaultSeen | Heat | Noticed | Recovering | StopRequested) -> None:
        self._out.append(Emit(event))

    def _emit_fault(self, cause: Cause, death: str = "") -> None:
        self._emit(
            FaultSeen(
                time=0.0,
                run_id=self._run_id,
                attempt=cause.attempt,
                kind=cause.kind.value,
                code=cause.code,
                message=cause.message,
                step=cause.step,
                phase=self._phase.value,
                death=death,
                traceback=cause.traceback,
                needed=cause.needed,
                free=cause.free,
            )
        )


_BEFORE_TRAINING = frozenset({Phase.IMPORT, Phase.VALIDATE, Phase.TOKENIZE, Phase.LOAD})
