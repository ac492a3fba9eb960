"""The supervisor's judgement on one stage of an export: inputs and actions are those of `policy`, the rules are fewer.

A stage has nothing to save: a stop just ends it, and what it had half done is done anew. Invariants, each with a property
test:

1. At most one child: Spawn is answered only when the last one has exited.
2. There are at most 1 + MORE_TRIES + SMALLER_TRIES + OTHER_WAYS children.
3. After StopAsked, every way leads to Finish: by the ladder's last rung at the latest.
4. Nothing follows Finish.
"""

from __future__ import annotations

from typing import assert_never

import msgspec

from backpropagate.events import Event
from backpropagate.judge import deadlines, ladder, telling
from backpropagate.judge import decisions as d
from backpropagate.judge.plan import Stage
from backpropagate.judge.stage_verdict import Anew, judge
from backpropagate.judge.states import DUMP_TIME, KILL_PATIENCE, WITHOUT_CHILD, State
from backpropagate.judge.timers import Timer, Timers
from backpropagate.judge.verdict import Cause, GiveUp, Kind, of_death, reported
from backpropagate_protocol import messages as m
from backpropagate_protocol.jobs import EvaluateJob, ReferenceJob
from backpropagate_protocol.measured import Evaluation, Proof
from backpropagate_protocol.messages import Phase
from backpropagate_protocol.spec import SafetySpec

StageResult = m.ExportRoute | m.Made | Proof | m.Registered | m.Pushed | Evaluation


class StagePolicy:
    """One stage's judgement. `handle` takes one input and returns the actions, in order."""

    device = ""
    fit: int | None = None

    def __init__(
        self, run_id: str, safety: SafetySpec, stage: Stage, *, attempts: int = 0, jitter: float = 0.0
    ) -> None:
        """`attempts`: children that earlier supervisors gave this stage to. `jitter` in [0, 1) stretches the delays."""
        self._safety, self._stage, self._jitter = safety, stage, jitter
        self._tell = telling.Telling(run_id, stage.name)
        self._job = stage.job
        self.state = State.NEW
        self.attempt = attempts
        self.recoveries = 0
        self.result: StageResult | None = None
        self._causes: list[Cause] = []
        self._timers = Timers()
        self._ladder = ladder.Ladder()
        self._steps = deadlines.StepTimes()
        self._out: list[d.Action] = []
        self._stop: d.StopAsked | None = None
        self._forget_attempt()

    def _forget_attempt(self) -> None:
        self._hello = False
        self._phase = Phase.IMPORT
        self._cause: Cause | None = None  # why the child is being ended
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
                if self.state is State.NEW:
                    self._spawn(now)
            case d.RunnerSaid():
                self._said(now, input.message)
            case d.RunnerGarbled():
                self._fault(now, self._own_cause(Kind.PROTOCOL, "RUNTIME_PROTOCOL", input.text))
            case d.RunnerExited():
                self._exited(now, input.death)
            case d.SpawnFailed():
                self._exited(now, d.Death(None, f"could not be started: {input.text}"))
            case d.Tick():
                self._tick(now, input.late)
            case d.StopAsked():
                self._stop_asked(input)
            case (
                d.CheckpointFound()
                | d.SearchFailed()
                | d.CardKnown()
                | d.CardLimits()
                | d.Temperature()
                | d.SensorLost()
            ):
                pass  # a stage has no checkpoints, and reserves no card
            case _:
                assert_never(input)
        return self._out

    # --- from one child to the next ---------------------------------------------------------------------------------

    def _spawn(self, now: float) -> None:
        self.state = State.READYING
        self.attempt += 1
        self._timers.only(Timer.PHASE, now + deadlines.HELLO)
        warm = self._job.backend if isinstance(self._job, ReferenceJob | EvaluateJob) else "none"
        self._out.append(d.Spawn(self.attempt, warm))

    def _exited(self, now: float, death: d.Death) -> None:
        if self.state in WITHOUT_CHILD:
            return
        if self.result is not None:
            self._finish(telling.completed())
        elif self._stop is not None:
            self._finish(telling.stopped_in(self._stage.name, self._stop))
        else:
            self._judge(now, self._cause or self._cause_of_death(death))

    def _cause_of_death(self, death: d.Death) -> Cause:
        mute = not self._hello and not self._causes
        cause = self._own_cause(*of_death(death, mute=mute, who="its process"))
        self._emit(self._tell.fault(cause, death.text))
        return cause

    def _judge(self, now: float, cause: Cause) -> None:
        verdict = judge(cause, self._stage, self._job, self._causes)
        self._causes.append(cause)
        if isinstance(verdict, GiveUp):
            self._finish(telling.gave_up(verdict))
            return
        self._again(now, cause, verdict)

    def _again(self, now: float, cause: Cause, verdict: Anew) -> None:
        self._forget_attempt()
        self.recoveries += 1
        self._job = verdict.job
        delay = verdict.delay * (1 + self._jitter)
        self._emit(self._tell.recovering(cause.message, delay, 0, 0, None, 0))
        if delay > 0:
            self.state = State.WAITING
            self._timers.only(Timer.RESPAWN, now + delay)
        else:
            self._spawn(now)

    # --- what the child says ----------------------------------------------------------------------------------------

    def _said(self, now: float, message: m.ToParent) -> None:
        if self.state in WITHOUT_CHILD:
            return
        match message:
            case m.Hello():
                self._said_hello(now, message)
            case m.PhaseChanged():
                self._enter(now, message.phase)
            case m.Fault():
                self._fault(now, reported(message, self.attempt, trained=False))
            case m.Stopped():
                self._said_stopped(now)
            case m.Done():
                self._said_done(now, message)
            case m.Notice():
                pass  # for people
            case (
                m.DataReady()
                | m.Started()
                | m.Progress()
                | m.CheckpointSaved()
                | m.CheckpointFailed()
                | m.Said()
                | m.Turn()
                | m.Evaluated()
            ):
                pass  # words of other Jobs
            case _:
                assert_never(message)

    def _said_hello(self, now: float, hello: m.Hello) -> None:
        if hello.protocol != m.PROTOCOL_VERSION:
            text = f"the runner speaks protocol {hello.protocol}, this supervisor {m.PROTOCOL_VERSION}"
            self._fault(now, self._own_cause(Kind.MISMATCH, "RUNTIME_PROTOCOL", text))
            return
        self._hello = True
        if self.state is State.READYING:
            self.state = State.WORKING
            self._enter(now, Phase.IMPORT)
            job = msgspec.structs.replace(self._job, attempt=self.attempt)
            self._out.append(d.Give(self._stage.name, job))

    def _said_stopped(self, now: float) -> None:
        if self.state is State.WORKING:  # nobody here asked for it
            text = "its process was told to stop by someone else"
            self._cause = self._own_cause(Kind.DIED, "RUNTIME_CHILD_DIED", text)
            self._emit(self._tell.fault(self._cause))
            self.state = State.KILLING
            self._timers.only(Timer.KILL, now + deadlines.TEARDOWN)

    def _said_done(self, now: float, done: m.Done) -> None:
        if self.state not in (State.WORKING, State.STOPPING):
            return
        if not isinstance(done.result, StageResult):
            text = f"the runner answered with a {type(done.result).__name__}"
            self._fault(now, self._own_cause(Kind.PROTOCOL, "RUNTIME_PROTOCOL", text))
            return
        self.result = done.result
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
        return Cause(kind, code, message, attempt=self.attempt, phase=self._phase)

    def _fault(self, now: float, cause: Cause) -> None:
        """The child is of no more use: note why, and end it."""
        if self.state not in (State.READYING, State.WORKING, State.STOPPING):
            return
        self._emit(self._tell.fault(cause))
        self._cause = self._cause or cause
        self._kill(now, cause.message)

    def _kill(self, now: float, reason: str) -> None:
        self.state = State.KILLING
        self._ladder.leave()
        self._timers.only(Timer.EXIT, now + KILL_PATIENCE)
        self._out.append(d.Kill(reason))

    def _stop_asked(self, asked: d.StopAsked) -> None:
        again = self._stop is not None
        self._stop = self._stop or asked
        match self.state:
            case State.NEW | State.WAITING | State.COOLING:
                self._emit(self._tell.stop(asked.reason, save=False))
                self._finish(telling.stopped_in(self._stage.name, self._stop))
            case State.WORKING if not (again or asked.kill):
                self._emit(self._tell.stop(asked.reason, save=False, seconds=ladder.WITHOUT_SAVE))
                self.state = State.STOPPING
                self._ladder.begin(asked.now, ladder.WITHOUT_SAVE)
                self._timers.only(Timer.LADDER, self._ladder.next or asked.now)
                self._out.append(d.Send(m.Stop(asked.reason, save=False)))
            case State.READYING | State.WORKING | State.STOPPING:
                if self.state is not State.STOPPING or again or asked.kill:
                    self._emit(self._tell.stop(asked.reason, save=False))
                    self._kill(asked.now, f"{asked.reason}, now")
            case State.KILLING | State.CLOSING | State.ENDED:
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
                text = f"no progress in phase {self._phase.value} within its deadline"
                self._cause = self._own_cause(Kind.HANG, "RUNTIME_HANG", text)
                self._emit(self._tell.fault(self._cause))
                self.state = State.KILLING
                self._timers.only(Timer.KILL, now + DUMP_TIME)
                self._out.append(d.DumpStacks())
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
            case Timer.SEARCH | Timer.COOL:
                pass
            case _:
                assert_never(timer)

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

    def _emit(self, event: Event) -> None:
        self._out.append(d.Emit(event))
