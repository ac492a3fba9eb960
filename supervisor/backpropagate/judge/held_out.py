"""The scores of a run's held-out rows that count, from its events. Pure.

An attempt that begins again at an earlier step scores again what came after it; what a dead attempt had said of that is
forgotten.
"""

from __future__ import annotations

from backpropagate.events import AttemptStarted, Evaluation, Event


class Scores:
    """Feed it every event, in order."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[float, bool]] = {}

    def see(self, event: Event) -> None:
        if isinstance(event, Evaluation):
            self._found[event.step] = (event.loss, event.best)
        elif isinstance(event, AttemptStarted):
            self._found = {step: said for step, said in self._found.items() if step <= event.resume_step}

    @property
    def points(self) -> list[tuple[int, float]]:
        """(step, loss), in order."""
        return [(step, loss) for step, (loss, _) in self._found.items()]

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and loss of the best one."""
        return next(((step, loss) for step, (loss, best) in reversed(self._found.items()) if best), None)
