"""What can fall due while a run is supervised, and when. Pure; `now` is handed in."""

from __future__ import annotations

from enum import Enum


class Timer(Enum):
    """Each has at most one due time."""

    PHASE = "phase"  # the child shows no progress
    LADDER = "ladder"  # the next rung of the stop ladder
    KILL = "kill"  # the stacks of a hung child are dumped by now
    EXIT = "exit"  # a killed child does not go away
    CLOSE = "close"  # it does not end after Done
    RESPAWN = "respawn"
    SEARCH = "search"  # checkpoints that could not be read are looked at again
    COOL = "cool"  # the card does not cool down


class Timers:
    """The due times."""

    def __init__(self) -> None:
        self._due: dict[Timer, float] = {}

    def only(self, timer: Timer, at: float) -> None:
        """Forgets all others: a state was entered in which only this one matters."""
        self._due = {timer: at}

    def set(self, timer: Timer, at: float) -> None:
        self._due[timer] = at

    def clear(self, *timers: Timer) -> None:
        """Forgets these; all, if none is named."""
        for timer in timers or tuple(self._due):
            self._due.pop(timer, None)

    def shift(self, late: float) -> None:
        """We ourselves stood still for `late` seconds: everybody gets them back."""
        self._due = {timer: at + late for timer, at in self._due.items()}

    def at(self, timer: Timer, default: float) -> float:
        return self._due.get(timer, default)

    @property
    def next(self) -> float | None:
        return min(self._due.values(), default=None)

    def take(self, now: float) -> Timer | None:
        """The one that has been due longest, if any; it is then forgotten."""
        due = [timer for timer, at in self._due.items() if at <= now]
        if not due:
            return None
        first = min(due, key=self._due.__getitem__)
        del self._due[first]
        return first
