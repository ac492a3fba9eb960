"""When held-out rows are scored, which score was the best, and when it is enough. Pure; steps and losses only.

1. What is due depends on the step alone, so that every attempt scores after the same steps.
2. A better loss is a lower one: of equals the earlier stays the best. A loss that is not finite is no better than any.
3. The count of evaluations without a better one is part of the standing, which travels in the manifest of every checkpoint:
   a resume counts on from there, and what is done again is counted again from the same place.
"""

from __future__ import annotations

import math

import msgspec

from backpropagate_protocol.rundir import Standing
from backpropagate_protocol.spec import RunSpec, is_evaluated

_TIMES = 10  # in a run, if nobody says how often


class Evaluations:
    """One attempt's account. `standing`: that of the checkpoint it begins from."""

    def __init__(self, spec: RunSpec, standing: Standing | None) -> None:
        self.standing = standing
        self._on = is_evaluated(spec)
        self._every, self._patience = spec.train.eval_steps, spec.train.early_stopping
        self._keeps_best = spec.train.keep_best
        self._before: Standing | None = None  # what holds if the newest best cannot be kept

    def due(self, step: int, total_steps: int) -> bool:
        """After the last step, and after every `eval_steps` steps."""
        if not self._on or step <= 0:
            return False
        every = self._every or math.ceil(total_steps / _TIMES)
        return step >= total_steps or step % every == 0

    def owed(self, step: int, total_steps: int) -> bool:
        """Whether it is due after this step, and not done."""
        return self.due(step, total_steps) and (self.standing is None or self.standing.step < step)

    def take(self, step: int, loss: float) -> bool:
        """Enters the score after `step`; True if it is the best so far."""
        before = self.standing or Standing(step=0, loss=None)
        self._before = None
        finite = math.isfinite(loss)
        if finite and (before.best_loss is None or loss < before.best_loss):
            self._before = before
            self.standing = Standing(step=step, loss=loss, best_step=step, best_loss=loss)
            return True
        said = loss if finite else None
        self.standing = msgspec.structs.replace(before, step=step, loss=said, worse=before.worse + 1)
        return False

    def not_kept(self) -> None:
        """The weights of the newest best are gone, since no checkpoint could take them: the one before is the best again.

        The evaluations are counted as if it had been better, which it was.
        """
        if self._keeps_best and self._before is not None and self.standing is not None:
            old = self._before
            self.standing = msgspec.structs.replace(self.standing, best_step=old.best_step, best_loss=old.best_loss)
        self._before = None

    def lose_best(self) -> None:
        """The checkpoint of the best one is gone: the next evaluation is the best so far."""
        if self.standing is not None:
            self.standing = msgspec.structs.replace(self.standing, best_step=0, best_loss=None)

    @property
    def kept_step(self) -> int:
        """The step whose checkpoint must stay, since the result may be made of it; 0: none must."""
        return self.standing.best_step if self._keeps_best and self.standing is not None else 0

    @property
    def enough(self) -> bool:
        """So many in a row were no better that the training is to end."""
        return self._on and self.standing is not None and 0 < self._patience <= self.standing.worse
