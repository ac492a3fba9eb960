"""The supervisor's judgement: what happened goes in, what to do comes out. No I/O, no clock, no randomness.

The states and who leaves them are drawn in docs/supervision.md. Invariants, each with a property test:

1. At most one child: Spawn is answered only when the last one has exited.
2. micro-batch times accumulation is the effective batch in every Assign.
3. Between two newly committed steps there are at most max_respawns counted respawns, and in the whole run at most
   max_halvings halvings for want of memory.
4. After StopAsked, every way leads to Finish: by the ladder's last rung at the latest.
5. Nothing follows Finish.

This file is long because a state machine is read in one piece; arithmetic, deadlines, timers, ladder, heat, verdicts and
words are files of their own.
"""

from __future__ import annotations

from typing import assert_never

from backpropagate.events import Event
from backpropagate.judge import deadlines, ladder, telling
from backpropagate.judge import decisions as d
from backpropagate.judge.budget import Budget
from backpropagate.judge.plan import Start
from backpropagate.judge.states import (
    BEFORE_TRAINING,
    BLIND_COOLING,
    COOLING_PATIENCE,
    DISK_PATIENCE,
    DUMP_TIME,
    KILL_PATIENCE,
    WITHOUT_CHILD,
    State,
)
from backpropagate.judge.thermal import HeatLevel, Thermal
from backpropagate.judge.timers import Timer, Timers
from backpropagate.judge.verdict import Again, Cause, GiveUp, Kind, of_death, reported
from backpropagate_protocol import messages as m
from backpropagate_protocol.jobs import PreparedRef
from backpropagate_protocol.messages import Phase
from backpropagate_protocol.spec import RunSpec


class Policy:
    """One run's judgement. `handle` takes one input and returns the actions, in order."""

    def __init__(self, spec: RunSpec, start: Start, jitter: float = 0.0) -> None:
        """`jitter` in [0, 1) stretches the delays of respawns, so that several machines do not act in step."""
        self._safety, self._budget = spec.safety, Budget(spec.safety, jitter)
        self._tell = telling.Telling(spec.run_id)
        self.effective = spec.train.effective_batch
        self.micro = start.micro_batch
        self.fit: int | None = None  # the one that a want of memory found: a guess or a wish is the same next time
        self.gradient_checkpointing = start.gradient_checkpointing
        self.prepared: PreparedRef | None = start.prepared
        self.state = State.NEW
        self.attempt = start.attempts
        self.recoveries = 0
        self.committed: d.Found | None = None
        self.result: m.TrainResult | None = None
        self.last_step = 0
        self.total_steps = 0
        self.device = ""
        self._card_pending = start.wait_for_card
        self._timers = Timers()
        self._ladder = ladder.Ladder()
        self._steps = deadlines.StepTimes()
        self._slowest_save = 0.0
        self._thermal = Thermal(spec.safety)
        self._blind = False
        self._out: list[d.Action] = []
        self._stop: d.StopAsked | None = None  # someone wants the whole run to end
        self._forget_attempt()

    def _forget_attempt(self) -> None:
        self._hello = False
        self._phase = Phase.IMPORT
        self._trained = False
        self._cause: Cause | None = None  # why the child is being ended
        self._search_pending = False
        self._searches = 0  # that failed, one after the other
        self._announce: str | None = None  # what the respawn is for, until it can be told
        self._timers.clear()
        self._ladder.leave()

    @property
    def wake_at(self) -> float | None:
        """When the next Tick is needed at the latest."""
        return self._timers.next

    @property
    def stop_asked(self) -> bool:
        """Someone wants the run to end."""
        return self._stop is not None

    def handle(self, input: d.Input) -> list[d.Action]:
        """What to do about it. Anything may come at any time; what has no meaning in a state is passed over."""
        self._out = []
        if self.state is State.ENDED:
            return self._out
        now = input.now
        match input:
            case d.Begin():
                self._begin(now)
            case d.RunnerSaid():
                self._said(now, input.message)
            case d.RunnerGarbled():
                self._fault(now, self._own_cause(Kind.PROTOCOL, "RUNTIME_PROTOCOL", input.text))
            case d.RunnerExited():
                self._exited(now, input.death)
            case d.SpawnFailed():
                self._exited(now, d.Death(None, f"could not be started: {input.text}"))
            case d.CheckpointFound():
                self._checkpoint(now, input.found)
            case d.SearchFailed():
                self._search_failed(now, input.text)
            case d.Tick():
                self._tick(now, input.late)
            case d.StopAsked():
                self._stop_asked(input)
            case d.CardKnown():
                self._card_pending = False
                self.micro = self.micro if input.micro_batch is None else input.micro_batch
                self._assign_if_ready(now)
            case d.CardLimits():
                self._thermal.limits(input.slowdown, input.shutdown)
            case d.Temperature():
                self._temperature(now, input.celsius)
            case d.SensorLost():
                self._sensor_lost(now, input.text)
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
        self._timers.clear(Timer.RESPAWN, Timer.COOL)  # a search may be due
        self._timers.set(Timer.PHASE, now + deadlines.HELLO)
        self._out.append(d.Spawn(self.attempt))

    def _search(self) -> None:
        self._search_pending = True
        self._out.append(d.FindCheckpoint())

    def _checkpoint(self, now: float, found: d.Found | None) -> None:
        if not self._search_pending:
            return
        self._search_pending = False
        self.committed = found
        if found is not None and found.total_steps:
            self.total_steps = found.total_steps
        if self._announce is not None:
            delay = max(0.0, self._timers.at(Timer.RESPAWN, now) - now)
            accumulation = self.effective // self.micro
            self._emit(self._tell.recovering(self._announce, delay, self.micro, accumulation, found, self.last_step))
            self._announce = None
        self.last_step = found.step if found else 0
        self._assign_if_ready(now)

    def _search_failed(self, now: float, text: str) -> None:
        """Never on without them: a run that began anew for a passing error of the disk would lose all its work."""
        if not self._search_pending:
            return
        if self._searches < self._budget.rules.max_respawns:
            self._searches += 1
            delay = self._budget.delay(self._searches)
            self._timers.set(Timer.SEARCH, now + delay)
            self._emit(self._tell.unreadable(text, delay))
            return
        self._phase = Phase.CHECKPOINT
        cause = self._own_cause(Kind.DISK, "RUNTIME_DISK_FULL", f"the checkpoints cannot be read: {text}")
        if self.state in WITHOUT_CHILD:
            self._emit(self._tell.fault(cause))
            self._judge(now, cause)
        else:
            self._fault(now, cause)

    def _assign_if_ready(self, now: float) -> None:
        if self.state is not State.READYING or not self._hello:
            return
        if self._card_pending or self._search_pending:
            self._timers.clear(Timer.PHASE)  # it is we who are not ready
            return
        self.state = State.WORKING
        self._enter(now, Phase.IMPORT)
        accumulation = self.effective // self.micro
        self._out.append(
            d.Assign(self.attempt, self.micro, accumulation, self.gradient_checkpointing, self.committed, self.prepared)
        )

    def _exited(self, now: float, death: d.Death) -> None:
        if self.state in WITHOUT_CHILD:
            return
        if self.result is not None:
            self._finish(telling.completed())
        elif self._stop is not None:
            self._finish(telling.stopped(self._stop, self.committed))
        else:
            self._judge(now, self._cause or self._cause_of_death(death))

    def _cause_of_death(self, death: d.Death) -> Cause:
        """It ended without a word that would explain it."""
        cause = self._own_cause(*of_death(death, mute=not self._hello and self.recoveries == 0))
        self._emit(self._tell.fault(cause, death.text))
        return cause

    def _judge(self, now: float, cause: Cause) -> None:
        unknown = self.gradient_checkpointing is None and not self.device.startswith("cuda")
        can_help = unknown or self.gradient_checkpointing is False
        resuming = self.committed is not None
        verdict = self._budget.judge(
            cause,
            self.micro,
            self.effective,
            checkpointing_can_help=can_help,
            loaded=resuming or bool(self.device),
            resuming=resuming,
        )
        if isinstance(verdict, GiveUp):
            self._finish(telling.gave_up(verdict))
        else:
            self._respawn(now, cause, verdict)

    def _respawn(self, now: float, cause: Cause, verdict: Again) -> None:
        self._forget_attempt()
        self.recoveries += 1
        self.micro = verdict.micro
        if cause.kind in (Kind.OOM, Kind.HOST_OOM):
            self.fit = verdict.micro
        if verdict.gradient_checkpointing:
            self.gradient_checkpointing = True
        delay = self._budget.spend(verdict)
        self._announce = cause.message
        if verdict.cool_first and not self._thermal.is_cool:
            self.state = State.COOLING
            self._timers.set(Timer.COOL, now + (BLIND_COOLING if self._blind else COOLING_PATIENCE))
            self._search()
        elif delay > 0:
            self.state = State.WAITING
            self._timers.set(Timer.RESPAWN, now + delay)
            self._search()
        else:
            self._spawn(now)
            self._search()

    # --- what the child says ----------------------------------------------------------------------------------------

    def _said(self, now: float, message: m.ToParent) -> None:
        if self.state in WITHOUT_CHILD:
            return
        match message:
            case m.Hello():
                self._said_hello(now, message)
            case m.PhaseChanged():
                self._enter(now, message.phase)
            case m.DataReady():
                self.prepared = PreparedRef(message.path, message.digest)
            case m.Started():
                self._said_started(now, message)
            case m.Progress():
                self._said_progress(now, message)
            case m.CheckpointSaved():
                self._said_saved(now, message)
            case m.CheckpointFailed():
                self._said_not_saved(now, message)
            case m.Fault():
                self._fault(now, reported(message, self.attempt, self._trained))
            case m.Stopped():
                self._said_stopped(now)
            case m.Done():
                self._said_done(now, message)
            case m.Notice() | m.Said() | m.Turn() | m.Evaluated():
                pass  # for people
            case _:
                assert_never(message)

    def _said_hello(self, now: float, hello: m.Hello) -> None:
        if hello.protocol != m.PROTOCOL_VERSION:
            text = f"the runner speaks protocol {hello.protocol}, this supervisor {m.PROTOCOL_VERSION}"
            self._fault(now, self._own_cause(Kind.MISMATCH, "RUNTIME_PROTOCOL", text))
            return
        self._hello = True
        self._assign_if_ready(now)

    def _said_started(self, now: float, started: m.Started) -> None:
        self.device, self.total_steps = started.device, started.total_steps
        asked = (self.micro, self.effective // self.micro, self.committed.step if self.committed else 0)
        got = (started.micro_batch, started.accumulation, started.step)
        if self.state is State.WORKING and got != asked:
            text = f"the runner began with (micro-batch, accumulation, step) {got} instead of {asked}"
            self._fault(now, self._own_cause(Kind.MISMATCH, "RUNTIME_PROTOCOL", text))
            return
        self._enter(now, Phase.FIRST_STEP)

    def _said_progress(self, now: float, progress: m.Progress) -> None:
        (self._steps.add if self._trained else self._steps.first)(progress.step_seconds)
        self._trained = True
        self.last_step, self.total_steps = progress.step, progress.total_steps
        self._enter(now, Phase.TRAIN)

    def _said_saved(self, now: float, saved: m.CheckpointSaved) -> None:
        if self.committed is None or saved.step > self.committed.step:
            self._budget.progress()
        self._slowest_save = max(self._slowest_save, saved.seconds)
        self.committed = d.Found(saved.name, saved.step, saved.samples_seen, saved.order, self.total_steps, saved.loss)
        self.last_step = max(self.last_step, saved.step)
        self._enter(now, Phase.TRAIN)

    def _said_not_saved(self, now: float, failed: m.CheckpointFailed) -> None:
        self._enter(now, Phase.TRAIN)
        if failed.failures >= DISK_PATIENCE and self.state is State.WORKING:
            text = f"{failed.failures} checkpoints in a row could not be written: {failed.message}"
            self._pause(now, self._own_cause(Kind.DISK, "RUNTIME_DISK_FULL", text), "disk", save=False)

    def _said_stopped(self, now: float) -> None:
        if self.state is State.WORKING:  # nobody here asked for it
            text = "the training process was told to stop by someone else"
            self._cause = self._own_cause(Kind.DIED, "RUNTIME_CHILD_DIED", text)
            self._emit(self._tell.fault(self._cause))
            self.state = State.KILLING
            self._timers.only(Timer.KILL, now + deadlines.TEARDOWN)

    def _said_done(self, now: float, done: m.Done) -> None:
        if isinstance(done.result, m.TrainResult) and self.state is not State.KILLING:
            self.result = done.result
            self.last_step = done.result.step
            self.state = State.CLOSING
            self._ladder.leave()
            self._timers.only(Timer.CLOSE, now + deadlines.TEARDOWN)

    def _enter(self, now: float, phase: Phase) -> None:
        """A sign of progress: the phase's deadline begins again."""
        self._phase = phase
        if self.state is State.WORKING:
            self._timers.set(Timer.PHASE, now + deadlines.limit(phase, self._safety, self._steps))

    # --- ending a child ---------------------------------------------------------------------------------------------

    def _own_cause(self, kind: Kind, code: str, message: str) -> Cause:
        return Cause(kind, code, message, self.last_step, self.attempt, trained=self._trained, phase=self._phase)

    def _fault(self, now: float, cause: Cause) -> None:
        """The child is of no more use: note why, and end it."""
        if self.state not in (State.READYING, State.WORKING, State.STOPPING):
            return
        self._emit(self._tell.fault(cause))
        if self._cause is None:
            self._cause = cause
        if cause.kind is Kind.CHECKPOINT and self.committed is not None:
            self._out.append(d.Quarantine(self.committed.name, cause.message))
        self._kill(now, cause.message)

    def _kill(self, now: float, reason: str) -> None:
        self.state = State.KILLING
        self._ladder.leave()
        self._timers.only(Timer.EXIT, now + KILL_PATIENCE)
        self._out.append(d.Kill(reason))

    def _pause(self, now: float, cause: Cause, reason: str, *, save: bool) -> None:
        """Ends the child politely for a cause of ours; `_exited` then judges the cause."""
        self._emit(self._tell.fault(cause))
        self._cause = cause
        self._ask(now, reason, save=save)

    def _ask(self, now: float, reason: str, *, save: bool) -> None:
        if self.state is State.READYING:
            self._emit(self._tell.stop(reason, save=False))
            self._kill(now, reason)  # it has no Job yet, so there is nothing to save
            return
        allowed = ladder.WITHOUT_SAVE
        if save:
            allowed = ladder.time_to_save(self._safety.grace, self._steps.p99, self._slowest_save)
        self._emit(self._tell.stop(reason, save=save, seconds=allowed))
        self.state = State.STOPPING
        self._ladder.begin(now, allowed)
        self._timers.only(Timer.LADDER, self._ladder.next or now)
        self._out.append(d.Send(m.Stop(reason, save)))

    def _stop_asked(self, asked: d.StopAsked) -> None:
        again = self._stop is not None
        self._stop = self._stop or asked
        match self.state:
            case State.NEW | State.WAITING | State.COOLING:
                self._emit(self._tell.stop(asked.reason, save=False))
                self._finish(telling.stopped(self._stop, self.committed))
            case State.READYING | State.WORKING | State.STOPPING if again or asked.kill:
                self._emit(self._tell.stop(asked.reason, save=False))
                self._kill(asked.now, f"{asked.reason}, now")
            case State.READYING | State.WORKING:
                # Before its first step there is nothing that a save would keep.
                self._ask(asked.now, asked.reason, save=self._phase not in BEFORE_TRAINING)
            case State.STOPPING | State.KILLING | State.CLOSING | State.ENDED:
                pass  # it is ending already; `_stop` decides what follows
            case _:
                assert_never(self.state)

    def _finish(self, finish: d.Finish) -> None:
        self.state = State.ENDED
        self._timers.clear()
        self._out.append(finish)

    # --- time -------------------------------------------------------------------------------------------------------

    def _tick(self, now: float, late: float) -> None:
        self._timers.shift(late)
        self._ladder.shift(late)
        while (timer := self._timers.take(now)) is not None:
            self._due(now, timer)

    def _due(self, now: float, timer: Timer) -> None:
        match timer:
            case Timer.PHASE:
                self._hang(now)
            case Timer.LADDER:
                self._climb(now)
            case Timer.KILL:
                self._kill(now, "it did not end by itself")
            case Timer.CLOSE:
                self._timers.set(Timer.EXIT, now + KILL_PATIENCE)
                self._out.append(d.Kill("it did not end after its work was done"))
            case Timer.EXIT:
                self._finish(telling.unkillable() if self.result is None else telling.completed())
            case Timer.RESPAWN:
                self._spawn(now)
            case Timer.SEARCH:
                self._out.append(d.FindCheckpoint())
            case Timer.COOL:
                self._not_cooling(now)
            case _:
                assert_never(timer)

    def _hang(self, now: float) -> None:
        text = f"no progress in phase {self._phase.value} within its deadline"
        self._cause = self._own_cause(Kind.HANG, "RUNTIME_HANG", text)
        self._emit(self._tell.fault(self._cause))
        self.state = State.KILLING
        self._timers.only(Timer.KILL, now + DUMP_TIME)
        self._out.append(d.DumpStacks())

    def _climb(self, now: float) -> None:
        match rung := self._ladder.climb():
            case ladder.Rung.TERMINATE:
                self._out.append(d.Terminate())
            case ladder.Rung.ABORT:
                self._out.append(d.DumpStacks())
            case ladder.Rung.KILL:
                self._kill(now, "it did not stop when asked")
            case _:
                assert_never(rung)
        if self._ladder.next is not None:
            self._timers.set(Timer.LADDER, self._ladder.next)

    # --- heat -------------------------------------------------------------------------------------------------------

    def _temperature(self, now: float, celsius: int) -> None:
        self._blind = False
        level = self._thermal.read(celsius)
        if self.state is State.COOLING and self._thermal.is_cool:
            self._emit(self._tell.heat(HeatLevel.COOL, celsius))
            self._spawn(now)
            return
        if level is None or self.state not in (State.READYING, State.WORKING, State.STOPPING):
            return
        if self.state is State.STOPPING and level is HeatLevel.PAUSE:
            return
        self._emit(self._tell.heat(level, celsius))
        text = f"the GPU reached {celsius} °C"
        cause = self._own_cause(Kind.OVERHEAT, "RUNTIME_GPU_TEMPERATURE_CRITICAL", text)
        if level is HeatLevel.KILL:
            self._fault(now, cause)
        elif level is HeatLevel.PAUSE:
            self._pause(now, cause, "heat", save=self._phase not in BEFORE_TRAINING)

    def _sensor_lost(self, now: float, text: str) -> None:
        if not self._blind:
            self._blind = True
            self._emit(self._tell.blind(text))
        if self.state is State.COOLING:
            self._timers.set(Timer.COOL, now + BLIND_COOLING)

    def _not_cooling(self, now: float) -> None:
        if self._blind:
            self._spawn(now)
        else:
            self._finish(telling.still_hot(self._thermal.celsius, COOLING_PATIENCE / 60))

    def _emit(self, event: Event) -> None:
        self._out.append(d.Emit(event))
