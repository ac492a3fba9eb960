"""What every policy does with its children: one at a time, watched while it works, ended within bounds, awaited. Pure.

What a child works on, and what follows when it failed, is said by those who build on this: `policy` for a training,
`stage` for every other stage. The states and who leaves them are drawn in docs/supervision.md. Invariants, which the
property tests of both hold:

1. At most one child: Spawn is answered only when the last one has exited.
2. After StopAsked, every way leads to Finish: by the ladder's last rung at the latest.
3. Nothing follows Finish.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import assert_never

from backpropagate.events import Event
from backpropagate.judge import deadlines, ladder, telling
from backpropagate.judge import decisions as d
from backpropagate.judge.news import Report, Surroundings
from backpropagate.judge.states import DUMP_TIME, KILL_PATIENCE, WITHOUT_CHILD, State
from backpropagate.judge.timers import Timer, Timers
from backpropagate.judge.verdict import Cause, Kind, of_death, reported
from backpropagate_protocol import messages as m
from backpropagate_protocol.messages import Phase
from backpropagate_protocol.spec import SafetySpec

_DEAF = "it did not stop when asked"


class ChildPolicy(ABC):
    """A judgement on one piece of work and its children. `handle` takes one input and returns the actions, in order."""

    _who: str  # the child, in a sentence

    def __init__(self, run_id: str, safety: SafetySpec, *, stage: str = "", attempts: int = 0) -> None:
        """`stage`: the one it is about, if it is not the training. `attempts`: children that there were before."""
        self._safety = safety
        self._tell = telling.Telling(run_id, stage)
        self.state = State.NEW
        self.attempt = attempts
        self.recoveries = 0
        self.last_step = 0  # stays there where the work has no steps
        self._timers = Timers()
        self._ladder = ladder.Ladder()
        self._steps = deadlines.StepTimes()
        self._out: list[d.Action] = []
        self._stop: d.StopAsked | None = None  # someone wants the whole run to end
        self._forget_attempt()

    def _forget_attempt(self) -> None:
        self._hello = False
        self._phase = Phase.IMPORT
        self._trained = False
        self._allowed = 0.0  # seconds until the next sign of progress
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
                    self._begin(now)
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
            case _:
                self._noticed(now, input)
        return self._out

    # --- what the work is -------------------------------------------------------------------------------------------

    @abstractmethod
    def _assign_if_ready(self, now: float) -> None:
        """Gives the child its Job, once it said Hello and nothing else is waited for."""

    @abstractmethod
    def _noticed(self, now: float, input: Surroundings) -> None:
        """Checkpoints, card, heat."""

    @abstractmethod
    def _reported(self, now: float, message: Report) -> None:
        """A child that lives told of its work."""

    @abstractmethod
    def _said_done(self, now: float, done: m.Done) -> None:
        """`_close`, if that is the result that was asked for."""

    @abstractmethod
    def _judge(self, now: float, cause: Cause) -> None:
        """No child lives any more: another one, or the end."""

    @abstractmethod
    def _stopped(self, asked: d.StopAsked) -> d.Finish:
        """The last words where someone wanted the end."""

    @property
    def _warm(self) -> str | None:
        """Whose frameworks the next child imports, as in Spawn."""
        return None

    @property
    def _time_to_save(self) -> float | None:
        """Seconds that a child which is asked to stop now may take for a save; None: there is nothing to save."""
        return None

    # --- from one child to the next ---------------------------------------------------------------------------------

    def _begin(self, now: float) -> None:
        self._spawn(now)

    def _spawn(self, now: float) -> None:
        self.state = State.READYING
        self.attempt += 1
        self._timers.clear(Timer.RESPAWN, Timer.COOL)  # a search may be due
        self._allow(now, deadlines.HELLO)
        self._out.append(d.Spawn(self.attempt, self._warm))

    def _spawn_after(self, now: float, delay: float) -> None:
        if delay > 0:
            self.state = State.WAITING
            self._timers.set(Timer.RESPAWN, now + delay)
        else:
            self._spawn(now)

    def _exited(self, now: float, death: d.Death) -> None:
        if self.state in WITHOUT_CHILD:
            return
        if self.state is State.CLOSING:
            self._finish(telling.completed())
        elif self._stop is not None:
            self._finish(self._stopped(self._stop))
        else:
            self._judge(now, self._cause or self._cause_of_death(death))

    def _cause_of_death(self, death: d.Death) -> Cause:
        """It ended without a word that would explain it."""
        mute = not self._hello and self.recoveries == 0
        cause = self._explained(self._own_cause(*of_death(death, mute=mute, who=self._who)))
        self._emit(self._tell.fault(cause, death.text))
        return cause

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
                self._fault(now, reported(message, self.attempt, self._trained))
            case m.Stopped():
                self._said_stopped(now)
            case m.Done():
                self._said_done(now, message)
            case _:
                self._reported(now, message)

    def _said_hello(self, now: float, hello: m.Hello) -> None:
        if hello.protocol != m.PROTOCOL_VERSION:
            text = f"the runner speaks protocol {hello.protocol}, this supervisor {m.PROTOCOL_VERSION}"
            self._fault(now, self._own_cause(Kind.MISMATCH, "RUNTIME_PROTOCOL", text))
            return
        self._hello = True
        self._assign_if_ready(now)

    def _said_stopped(self, now: float) -> None:
        if self.state is State.WORKING:  # nobody here asked for it
            text = f"{self._who} was told to stop by someone else"
            self._blame(self._own_cause(Kind.DIED, "RUNTIME_CHILD_DIED", text))
            self.state = State.KILLING
            self._timers.only(Timer.KILL, now + deadlines.TEARDOWN)

    def _enter(self, now: float, phase: Phase) -> None:
        """A sign of progress: the phase's deadline begins again."""
        self._phase = phase
        if self.state is State.WORKING:
            self._allow(now, deadlines.limit(phase, self._safety, self._steps))

    def _allow(self, now: float, seconds: float) -> None:
        """Until the next sign of progress."""
        self._allowed = seconds
        self._timers.set(Timer.PHASE, now + seconds)

    # --- ending a child ---------------------------------------------------------------------------------------------

    def _own_cause(self, kind: Kind, code: str, message: str) -> Cause:
        return Cause(kind, code, message, self.last_step, self.attempt, trained=self._trained, phase=self._phase)

    def _explained(self, cause: Cause) -> Cause:
        """What else is known of it."""
        return cause

    def _blame(self, cause: Cause) -> None:
        """The first cause is what `_exited` will have judged."""
        cause = self._explained(cause)
        self._emit(self._tell.fault(cause))
        self._cause = self._cause or cause

    def _fault(self, now: float, cause: Cause) -> None:
        """The child is of no more use: note why, and end it."""
        if self.state in (State.READYING, State.WORKING, State.STOPPING):
            self._blame(cause)
            self._kill(now, cause.message)

    def _kill(self, now: float, reason: str) -> None:
        self.state = State.KILLING
        self._ladder.leave()
        self._timers.only(Timer.EXIT, now + KILL_PATIENCE)
        self._out.append(d.Kill(reason))

    def _close(self, now: float) -> None:
        """The result stands, whatever the process does now."""
        self.state = State.CLOSING
        self._ladder.leave()
        self._timers.only(Timer.CLOSE, now + deadlines.TEARDOWN)

    def _ask(self, now: float, reason: str, to_save: float | None) -> None:
        """Ends the child politely. `to_save`: as `_time_to_save`."""
        if self.state is State.READYING:
            self._emit(self._tell.stop(reason, save=False))
            self._kill(now, reason)  # it has no Job yet, so there is nothing to save
            return
        save = to_save is not None
        allowed = ladder.WITHOUT_SAVE if to_save is None else to_save
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
                self._finish(self._stopped(self._stop))
            case State.READYING | State.WORKING | State.STOPPING if again or asked.kill:
                self._emit(self._tell.stop(asked.reason, save=False))
                self._kill(asked.now, f"{asked.reason}, now")
            case State.READYING | State.WORKING:
                self._ask(asked.now, asked.reason, self._time_to_save)
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
                self._finish(telling.completed() if self.state is State.CLOSING else telling.unkillable())
            case Timer.RESPAWN:
                self._spawn(now)
            case Timer.SEARCH | Timer.COOL:
                pass  # set by trainings alone
            case _:
                assert_never(timer)

    def _hang(self, now: float) -> None:
        # Of 2,000 s and of 1.5 s as much as says something.
        seconds = f"{self._allowed:,.0f}" if self._allowed >= 10 else f"{self._allowed:.2g}"
        text = f"no progress in phase {self._phase.value} for {seconds} s"
        self._blame(self._own_cause(Kind.HANG, "RUNTIME_HANG", text))
        self.state = State.KILLING
        self._timers.only(Timer.KILL, now + DUMP_TIME)
        self._out.append(d.DumpStacks(text))

    def _climb(self, now: float) -> None:
        match rung := self._ladder.climb():
            case ladder.Rung.TERMINATE:
                self._out.append(d.Terminate())
            case ladder.Rung.ABORT:
                self._out.append(d.DumpStacks(_DEAF))
            case ladder.Rung.KILL:
                self._kill(now, _DEAF)
            case _:
                assert_never(rung)
        if self._ladder.next is not None:
            self._timers.set(Timer.LADDER, self._ladder.next)

    def _emit(self, event: Event) -> None:
        self._out.append(d.Emit(event))
