"""The stop ladder: ask, SIGTERM, SIGABRT (which dumps the stacks), SIGKILL; always bounded. Pure; seconds."""

from __future__ import annotations

from enum import Enum

WITHOUT_SAVE = 10.0


class Rung(Enum):
    """What is tried next. The message itself is rung zero."""

    TERMINATE = 0.6  # of the time allowed, at which this rung is reached
    ABORT = 0.85
    KILL = 1.0


def rungs(now: float, grace: float | None) -> list[tuple[float, Rung]]:
    """When to climb. `grace` is the time for a save; None: nothing is to be saved."""
    allowed = WITHOUT_SAVE if grace is None else grace
    return [(now + allowed * rung.value, rung) for rung in Rung]
