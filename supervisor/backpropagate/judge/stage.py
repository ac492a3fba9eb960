"""The supervisor's judgement on one stage of an export: inputs and actions are those of `policy`, the rules fewer.

A stage has nothing to save: a stop just ends it, and what it had half done is done anew. To the invariants of `child` it
adds one, with a property test too: there are at most 1 + MORE_TRIES + SMALLER_TRIES + OTHER_WAYS children.
"""

from __future__ import annotations

import msgspec

from backpropagate.judge import decisions as d
from backpropagate.judge import telling
from backpropagate.judge.child import ChildPolicy
from backpropagate.judge.news import Report, Surroundings
from backpropagate.judge.plan import Stage
from backpropagate.judge.stage_verdict import judge
from backpropagate.judge.states import State
from backpropagate.judge.verdict import Cause, GiveUp, Kind
from backpropagate_protocol import messages as m
from backpropagate_protocol.jobs import EvaluateJob, ReferenceJob
from backpropagate_protocol.measured import Evaluation, Proof
from backpropagate_protocol.messages import Phase
from backpropagate_protocol.spec import SafetySpec

StageResult = m.ExportRoute | m.Made | Proof | m.Registered | m.Pushed | Evaluation


class StagePolicy(ChildPolicy):
    """One stage's judgement."""

    device = ""
    fit: int | None = None
    _who = "its process"

    def __init__(
        self, run_id: str, safety: SafetySpec, stage: Stage, *, attempts: int = 0, jitter: float = 0.0
    ) -> None:
        """`attempts`: children that earlier supervisors gave this stage to. `jitter` in [0, 1) stretches the delays."""
        super().__init__(run_id, safety, stage=stage.name, attempts=attempts)
        self._stage, self._jitter = stage, jitter
        self._job = stage.job
        self.result: StageResult | None = None
        self._causes: list[Cause] = []

    @property
    def _warm(self) -> str:
        return self._job.backend if isinstance(self._job, ReferenceJob | EvaluateJob) else "none"

    def _assign_if_ready(self, now: float) -> None:
        if self.state is State.READYING:
            self.state = State.WORKING
            self._enter(now, Phase.IMPORT)
            job = msgspec.structs.replace(self._job, attempt=self.attempt)
            self._out.append(d.Give(self._stage.name, job))

    def _noticed(self, now: float, input: Surroundings) -> None:
        """A stage has no checkpoints, and reserves no card; but what it holds while memory is short is worth less than the
        machine, and it can be done anew with less."""
        if isinstance(input, d.MemoryShort) and self.state is State.WORKING:
            text = f"memory is short: {input.text}"
            self._fault(now, self._own_cause(Kind.HOST_OOM, "RUNTIME_HOST_OOM", text))

    def _reported(self, now: float, message: Report) -> None:
        """Words for people, or of other Jobs."""

    def _said_done(self, now: float, done: m.Done) -> None:
        if self.state not in (State.WORKING, State.STOPPING):
            return
        if not isinstance(done.result, StageResult):
            text = f"the runner answered with a {type(done.result).__name__}"
            self._fault(now, self._own_cause(Kind.PROTOCOL, "RUNTIME_PROTOCOL", text))
            return
        self.result = done.result
        self._close(now)

    def _judge(self, now: float, cause: Cause) -> None:
        verdict = judge(cause, self._stage, self._job, self._causes)
        self._causes.append(cause)
        if isinstance(verdict, GiveUp):
            self._finish(telling.gave_up(verdict))
            return
        self._forget_attempt()
        self.recoveries += 1
        self._job = verdict.job
        delay = verdict.delay * (1 + self._jitter)
        self._emit(self._tell.recovering(cause.message, delay, 0, 0, None, 0))
        self._spawn_after(now, delay)

    def _stopped(self, asked: d.StopAsked) -> d.Finish:
        return telling.stopped_in(self._stage.name, asked)
