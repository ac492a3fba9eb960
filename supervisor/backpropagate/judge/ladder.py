"""The stop ladder: ask, SIGTERM, SIGABRT (which dumps the stacks), SIGKILL; always bounded. Pure; seconds."""

from __future__ import annotations

from enum import Enum

WITHOUT_SAVE = 10.0
LONGEST = 1800.0  # for a save; a longer grace is the user's own wish


class Rung(Enum):
    """What is tried next. The message itself is rung zero."""

    TERMINATE = 0.6  # of the time allowed, at which this rung is reached
    ABORT = 0.85
    KILL = 1.0


def time_to_save(grace: float, step: float, save: float) -> float:
    """Seconds for a stop that saves: the child ends the step it is in, and writes, maybe the checkpoint before this one too.
    `step`: what nearly all of them took at most; `save`: the slowest so far."""
    return max(grace, min(LONGEST, 2 * step + 3 * save))


class Ladder:
    """One climb. Nothing is due on a ladder that nobody began to climb."""

    def __init__(self) -> None:
        self._rungs: list[tuple[float, Rung]] = []

    def begin(self, now: float, allowed: float) -> None:
        self._rungs = [(now + allowed * rung.value, rung) for rung in Rung]

    def leave(self) -> None:
        self._rungs = []

    def shift(self, late: float) -> None:
        """We ourselves stood still for `late` seconds."""
        self._rungs = [(due + late, rung) for due, rung in self._rungs]

    def climb(self) -> Rung:
        return self._rungs.pop(0)[1]

    @property
    def next(self) -> float | None:
        """When the next rung is due."""
        return self._rungs[0][0] if self._rungs else None
