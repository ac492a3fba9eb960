"""The held-out rows of one attempt: scored when it is due, told, and what the scores mean for the training.

An evaluation is done before the checkpoint of its step, which so knows of it. One that a stop cuts short is owed, and made up
for by the resume before its first step: the same weights, the same score as if nothing had come between.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

from backpropagate_backends.base import HeldOut, Score
from backpropagate_protocol.durable import NotWhole, verify_dir
from backpropagate_protocol.messages import Evaluated, Phase
from backpropagate_protocol.prepared import Prepared
from backpropagate_protocol.rundir import RunDir
from backpropagate_runner.channel import Channel
from backpropagate_runner.control import Control
from backpropagate_runner.drill import Drill
from backpropagate_runner.evaluations import Evaluations
from backpropagate_runner.voice import Voice


class HeldOutWatch:
    """Asked by the session at every step boundary. `rows` None: nothing is ever due."""

    def __init__(
        self,
        rows: Prepared | None,
        evaluations: Evaluations,
        run: RunDir,
        voice: Voice,
        channel: Channel,
        control: Control,
        drill: Drill,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.evaluations = evaluations
        self._rows, self._run = rows, run
        self._voice, self._channel, self._control, self._drill, self._clock = voice, channel, control, drill, clock
        if evaluations.kept_step and not run.checkpoint(evaluations.kept_step).is_dir():
            self._lose_best("is gone")

    def before_step(self, saved_step: int) -> None:
        """The step that follows changes the weights: a best that no checkpoint has is no more."""
        if self.evaluations.kept_step > saved_step:
            self.evaluations.not_kept()

    def after_step(self, step: int, total_steps: int, score: Score | None) -> None:
        """Scores them if that is due, and does not if a stop waits."""
        if self.evaluations.due(step, total_steps):
            self._evaluate(step, score)
            self._voice.phase(Phase.TRAIN)

    def make_up(self, step: int, total_steps: int, score: Score) -> None:
        """The same, of a resume at `step` that owes it."""
        if self.evaluations.owed(step, total_steps):
            self._evaluate(step, score)
            self._voice.phase(Phase.LOAD)
            self.say_if_enough(step, total_steps)

    def say_if_enough(self, step: int, total_steps: int) -> None:
        standing = self.evaluations.standing
        if standing is None or not self.evaluations.enough or step >= total_steps:
            return
        count = "1 score" if standing.worse == 1 else f"{standing.worse} scores in a row"
        best = (
            ""
            if standing.best_loss is None
            else f"; the best was {standing.best_loss:.4f} at step {standing.best_step}"
        )
        self._voice.notice(f"stopped early at step {step} of {total_steps}: {count} without a better one{best}")

    def _evaluate(self, step: int, score: Score | None) -> None:
        if self._rows is None or score is None:
            raise ValueError("held-out rows are to be scored, and there are none, or there is no way to score them")
        if self._control.stop is not None:
            return
        began = self._clock()
        self._voice.phase(Phase.EVALUATE, 0, len(self._rows))

        def go_on(done: int, total: int) -> bool:
            self._drill.while_evaluating(step)
            self._voice.phase(Phase.EVALUATE, done, total)
            return self._control.stop is None

        found = score(self._rows, go_on)
        if found is not None:
            self._enter(step, found, self._clock() - began)

    def _enter(self, step: int, found: HeldOut, seconds: float) -> None:
        best = self.evaluations.take(step, found.loss)
        if not math.isfinite(found.loss):
            text = f"the loss of the held-out rows after step {step} is {found.loss}: no better than any"
            self._voice.notice(text, "warning")
            return
        extra = {name: value for name, value in found.extra.items() if math.isfinite(value)}
        self._channel.send(Evaluated(step, found.loss, found.rows, found.tokens, seconds, best, extra))

    def best(self, last_step: int) -> Path | None:
        """The verified checkpoint whose weights are to be the result; None: those of `last_step`, as they are."""
        step = self.evaluations.kept_step
        if step in (0, last_step):
            return None
        folder = self._run.checkpoint(step)
        try:
            verify_dir(folder)
        except (NotWhole, OSError) as error:
            self._lose_best(f"cannot be read ({error}), and the result has the newest weights")
            return None
        return folder

    def _lose_best(self, why: str) -> None:
        step = self.evaluations.kept_step
        self.evaluations.lose_best()
        self._voice.notice(f"the checkpoint of step {step}, which had the best held-out loss, {why}", "warning")
