"""Stages of one run, driven one at a time: each a child, tried again as its policy says, and told when it is done."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from backpropagate.drive.driver import Driver
from backpropagate.drive.reporter import Reporter
from backpropagate.drive.stops import Stops
from backpropagate.events import StageEnded
from backpropagate.judge.decisions import Finish
from backpropagate.judge.plan import Stage
from backpropagate.judge.stage import StagePolicy, StageResult
from backpropagate.keep.past import Past
from backpropagate.sensors.card import Card
from backpropagate_protocol.catalogue import ExitCode
from backpropagate_protocol.measured import Evaluation, Proof
from backpropagate_protocol.messages import ExportRoute, Made, Pushed, Registered
from backpropagate_protocol.rundir import RunDir
from backpropagate_protocol.spec import RunSpec


class Stages:
    """Does stages of a run. `answer`: what the last one that was done said."""

    def __init__(self, spec: RunSpec, run_dir: RunDir, report: Reporter, stops: Stops, past: Past) -> None:
        """`past` must be among those that `report` tells."""
        self._spec, self._run_dir, self._report, self._stops, self._past = spec, run_dir, report, stops, past
        self._card = Card(spec, None, None, wanted=False)  # a stage may use it, but reserves it not
        self.recoveries = 0
        self.answer: StageResult | None = None

    def has(self, stage: Stage) -> bool:
        """Whether it is done, by this supervisor or an earlier one, and what it made is still there."""
        return self._past.has(stage.name, stage.output)

    async def do(self, stage: Stage, inputs: Callable[[], str] | None = None) -> Finish | None:
        """Drives one stage to its end; None if all went well. `inputs`: the digest of what an export is made of."""
        attempts = self._past.attempts.get(stage.name, 0)
        policy = StagePolicy(self._spec.run_id, self._spec.safety, stage, attempts=attempts, jitter=random.random())
        driver = Driver(self._spec, self._run_dir, policy, self._report, self._card, self._stops)
        began = time.monotonic()
        finish = await driver.drive()
        self.recoveries += policy.recoveries
        if finish.exit_code is not ExitCode.DONE or policy.result is None:
            return finish
        self.answer = policy.result
        ended = _ended(self._spec.run_id, stage, policy.result, round(time.monotonic() - began, 3), inputs)
        if ended is not None:
            self._report.event(ended)
        return None


def _ended(
    run_id: str, stage: Stage, answer: StageResult, seconds: float, inputs: Callable[[], str] | None
) -> StageEnded | None:
    """The event of a stage that is done; None for a proof that failed, which has to be made again."""
    now, name = time.time(), stage.name
    match answer:
        case ExportRoute(notes=notes):
            digest = inputs() if inputs else ""
            return StageEnded(time=now, run_id=run_id, stage=name, seconds=seconds, digest=digest, notes=notes)
        case Made(path, size, digest, notes):
            return StageEnded(time=now, run_id=run_id, stage=name, seconds=seconds, path=path, bytes=size, digest=digest, notes=notes)  # fmt: skip
        case Proof(passed=passed):
            return StageEnded(time=now, run_id=run_id, stage=name, seconds=seconds) if passed else None
        case Registered(registered, digest, uploaded=size):
            detail = f"ollama run {registered}"
            return StageEnded(time=now, run_id=run_id, stage=name, seconds=seconds, bytes=size, digest=digest, detail=detail)  # fmt: skip
        case Pushed(url, _, files):
            size = sum(size for _, size in files)
            return StageEnded(time=now, run_id=run_id, stage=name, seconds=seconds, bytes=size, detail=url)
        case Evaluation():
            return StageEnded(time=now, run_id=run_id, stage=name, seconds=seconds)
