"""The supervisor's judgement on a training: what happened goes in, what to do comes out. No I/O, no clock, no randomness.

How a child is begun, watched and ended is `child`'s, and so are the invariants of that. Here is what a training adds:
checkpoints, the card and its heat, and the budget of what is tried again. Invariants, each with a property test:

1. micro-batch times accumulation is the effective batch in every Assign.
2. Between two newly committed steps there are at most max_respawns counted respawns, and in the whole run at most
   max_halvings halvings for want of memory.
"""

from __future__ import annotations

from typing import assert_never

from backpropagate.judge import decisions as d
from backpropagate.judge import ladder, telling
from backpropagate.judge.budget import Budget
from backpropagate.judge.halving import least_batch
from backpropagate.judge.news import Report, Surroundings
from backpropagate.judge.on_card import OnCard
from backpropagate.judge.others import Others
from backpropagate.judge.start import Start
from backpropagate.judge.states import (
    BEFORE_TRAINING,
    DISK_PATIENCE,
    WITHOUT_CHILD,
    State,
)
from backpropagate.judge.timers import Timer
from backpropagate.judge.verdict import Again, Cause, GiveUp, Kind
from backpropagate_protocol import messages as m
from backpropagate_protocol.jobs import PreparedRef
from backpropagate_protocol.messages import Phase
from backpropagate_protocol.spec import RunSpec


class Policy(OnCard):
    """One training's judgement."""

    _who = "the training process"

    def __init__(self, spec: RunSpec, start: Start, jitter: float = 0.0) -> None:
        """`jitter` in [0, 1) stretches the delays of respawns, so that several machines do not act in step."""
        super().__init__(spec.run_id, spec.safety, attempts=start.attempts)
        self._budget = Budget(spec.safety, jitter, least_batch(spec.train.method))
        self.effective = spec.train.effective_batch
        self.micro = start.micro_batch
        self.fit: int | None = None  # the one that a want of memory found: a guess or a wish is the same next time
        self.gradient_checkpointing = start.gradient_checkpointing
        self.prepared: PreparedRef | None = start.prepared
        self.held_out: PreparedRef | None = start.held_out
        self.committed: d.Found | None = None
        self.result: m.TrainResult | None = None
        self.total_steps = 0
        self.device = ""
        self._card_pending = start.wait_for_card
        self._slowest_save = start.slowest_save or 0.0
        if start.slowest_save is not None:
            self._steps.saved(start.slowest_save)
        self._others = Others()

    def _forget_attempt(self) -> None:
        super()._forget_attempt()
        self._search_pending = False
        self._searches = 0  # that failed, one after the other
        self._announce: str | None = None  # what the respawn is for, until it can be told

    def _noticed(self, now: float, input: Surroundings) -> None:
        match input:
            case d.CheckpointFound():
                self._checkpoint(now, input.found)
            case d.SearchFailed():
                self._search_failed(now, input.text)
            case d.CardKnown():
                self._card_pending = False
                self.micro = self.micro if input.micro_batch is None else input.micro_batch
                self._assign_if_ready(now)
            case d.MemoryHeld():
                self._memory_held(now, input)
            case d.MemoryShort():
                self._memory_short(now, input.text)
            case _:
                self._card_said(now, input)

    # --- from one child to the next ---------------------------------------------------------------------------------

    def _begin(self, now: float) -> None:
        super()._begin(now)
        self._search()

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
        checkpointing, data = self.gradient_checkpointing, (self.prepared, self.held_out)
        smaller = self._budget.smaller(self.micro, self.effective)
        self._out.append(
            d.Assign(self.attempt, self.micro, accumulation, checkpointing, self.committed, *data, smaller)
        )

    def _judge(self, now: float, cause: Cause) -> None:
        if self._others.are_to_blame(cause):
            self._await_memory(now, cause)
            return
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

    def _respawn(self, now: float, cause: Cause, verdict: Again, wait: float | None = None) -> None:
        """`wait`: until then, whatever the budget says."""
        self._forget_attempt()
        self.recoveries += 1
        self.micro = verdict.micro
        if cause.kind in (Kind.OOM, Kind.HOST_OOM) and wait is None:
            self.fit = verdict.micro
        if verdict.gradient_checkpointing:
            self.gradient_checkpointing = True
        delay = self._budget.spend(verdict) if wait is None else wait
        self._announce = cause.message
        if not (verdict.cool_first and self._cool_down(now)):
            self._spawn_after(now, delay)
        self._search()

    def _stopped(self, asked: d.StopAsked) -> d.Finish:
        return telling.stopped(asked, self.committed)

    # --- what the child says ----------------------------------------------------------------------------------------

    def _reported(self, now: float, message: Report) -> None:
        match message:
            case m.DataReady():
                self.prepared = PreparedRef(message.path, message.digest)
                self.held_out = telling.held_out(message)
            case m.Started():
                self._said_started(now, message)
            case m.Progress():
                self._said_progress(now, message)
            case m.CheckpointSaved():
                self._said_saved(now, message)
            case m.CheckpointFailed():
                self._said_not_saved(now, message)
            case m.Halved():
                self._said_halved(now, message)
            case m.Notice() | m.Said() | m.Turn() | m.Evaluated() | m.Rehearsed():
                pass  # for people
            case _:
                assert_never(message)

    def _said_started(self, now: float, started: m.Started) -> None:
        self.device, self.total_steps = started.device, started.total_steps
        asked = (self.micro, self.effective // self.micro, self.committed.step if self.committed else 0)
        got = (started.micro_batch, started.accumulation, started.step)
        if self.state is State.WORKING and got != asked:
            text = f"the runner began with (micro-batch, accumulation, step) {got} instead of {asked}"
            self._fault(now, self._own_cause(Kind.MISMATCH, "RUNTIME_PROTOCOL", text))
            return
        self._others.begun()
        self._enter(now, Phase.FIRST_STEP)

    def _said_halved(self, now: float, halved: m.Halved) -> None:
        """It did by itself what a verdict would have come to, and lost nothing by it."""
        allowed = next(iter(self._budget.smaller(self.micro, self.effective)), None)
        if halved.micro_batch != allowed or halved.micro_batch * halved.accumulation != self.effective:
            text = f"the runner went on with a micro-batch of {halved.micro_batch}, and was allowed {allowed or 'none'}"
            self._fault(now, self._own_cause(Kind.MISMATCH, "RUNTIME_PROTOCOL", text))
            return
        self._budget.halved_in_place()
        self.micro = self.fit = halved.micro_batch
        self._enter(now, self._phase)

    def _said_progress(self, now: float, progress: m.Progress) -> None:
        if progress.step <= self.last_step:
            return  # who says the same again has got no further, and its deadline stands
        (self._steps.add if self._trained else self._steps.first)(progress.step_seconds)
        self._trained = True
        self.last_step, self.total_steps = progress.step, progress.total_steps
        self._enter(now, Phase.TRAIN)

    def _said_saved(self, now: float, saved: m.CheckpointSaved) -> None:
        if self.committed is None or saved.step > self.committed.step:
            self._budget.progress()
            self._others.progress()
        self._slowest_save = max(self._slowest_save, saved.seconds)
        self._steps.saved(saved.seconds)
        self.committed = d.Found(saved.name, saved.step, saved.samples_seen, saved.order, self.total_steps, saved.loss)
        self.last_step = max(self.last_step, saved.step)
        self._save_ended(now)

    def _said_not_saved(self, now: float, failed: m.CheckpointFailed) -> None:
        self._save_ended(now)
        if failed.failures >= DISK_PATIENCE and self.state is State.WORKING:
            text = f"{failed.failures} checkpoints in a row could not be written: {failed.message}"
            self._pause(now, self._own_cause(Kind.DISK, "RUNTIME_DISK_FULL", text), "disk", None)

    def _save_ended(self, now: float) -> None:
        """One that is written beside the training says nothing of the training's own progress."""
        if self._phase is Phase.CHECKPOINT:
            self._enter(now, Phase.TRAIN)

    def _said_done(self, now: float, done: m.Done) -> None:
        if isinstance(done.result, m.TrainResult) and self.state is not State.KILLING:
            self.result = done.result
            self.last_step = done.result.step
            self._close(now)

    # --- ending a child ---------------------------------------------------------------------------------------------

    def _blame(self, cause: Cause) -> None:
        super()._blame(cause)
        if cause.kind is Kind.CHECKPOINT and self.committed is not None:
            self._out.append(d.Quarantine(self.committed.name, cause.message))

    @property
    def _time_to_save(self) -> float | None:
        if self._phase in BEFORE_TRAINING:  # there is nothing yet that a save would keep
            return None
        return ladder.time_to_save(self._safety.grace, self._steps.p99, self._slowest_save)

    def _due(self, now: float, timer: Timer) -> None:
        match timer:
            case Timer.RESPAWN if self._others.awaited and self._others.are_there:
                self._look_again(now)
            case Timer.SEARCH:
                self._out.append(d.FindCheckpoint())
            case Timer.COOL:
                self._not_cooling(now)
            case _:
                super()._due(now, timer)

    # --- memory that others hold ------------------------------------------------------------------------------------

    def _await_memory(self, now: float, cause: Cause) -> None:
        """Goes on unchanged when they are gone: a smaller batch would stay small for the rest of the run."""
        delay = self._others.wait(now)
        if delay is None:
            self._give_up_memory()
            return
        self._tell_of_others(now, max(cause.others, self._others.memory))
        self._respawn(now, cause, Again(self.micro, counts=False), delay)

    def _memory_short(self, now: float, text: str) -> None:
        """Before the first step a smaller batch needs no less, and it is known whose memory it is as little as for the host's."""
        if self.state is State.WORKING:
            early = self._phase in BEFORE_TRAINING
            kind, code = (Kind.HOST_OOM, "RUNTIME_HOST_OOM") if early else (Kind.OOM, "RUNTIME_GPU_OOM")
            self._fault(now, self._own_cause(kind, code, f"memory is short: {text}"))

    def _look_again(self, now: float) -> None:
        delay = self._others.wait(now)
        if delay is None:
            self._give_up_memory()
            return
        self._timers.set(Timer.RESPAWN, now + delay)
        if self._others.are_news(now):
            self._tell_of_others(now, self._others.memory)

    def _give_up_memory(self) -> None:
        self._finish(telling.memory_held(self._others.culprits, self._others.patience / 60))

    def _tell_of_others(self, now: float, memory: int) -> None:
        self._others.told(now)
        self._emit(self._tell.memory_awaited(memory, self._others.culprits, self._others.patience))

    def _spawn(self, now: float) -> None:
        self._others.awaited = False
        super()._spawn(now)

    def _memory_held(self, now: float, held: d.MemoryHeld) -> None:
        self._others.read(held.memory, held.holders, held.pids)
        if self.state is not State.WAITING or not self._others.awaited:
            return
        if not self._others.are_there:
            self._spawn(now)
        elif self._others.are_news(now):
            self._tell_of_others(now, held.memory)
