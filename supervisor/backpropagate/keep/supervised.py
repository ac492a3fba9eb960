"""How long a run was under supervision, by the times in its own journal: also while it runs, and where a supervisor was killed."""

from __future__ import annotations

from backpropagate.events import Event, RunCreated, RunEnded, RunResumed


class Supervised:
    """Feed it every event, in order. Seconds; what lies between two supervisors does not count.

    A supervisor that ended says itself how long it was at work; one that was killed counts up to its last line. A clock that
    is set back in between takes nothing off.
    """

    def __init__(self) -> None:
        self._earlier = 0.0
        self._began: float | None = None
        self._latest = 0.0

    @property
    def seconds(self) -> float:
        now = 0.0 if self._began is None else max(0.0, self._latest - self._began)
        return round(self._earlier + now, 3)

    def see(self, event: Event) -> None:
        if isinstance(event, RunCreated | RunResumed):
            self._earlier = self.seconds
            self._began = self._latest = event.time
        elif isinstance(event, RunEnded):
            self._earlier += event.seconds
            self._began = None
        elif self._began is not None:
            self._latest = max(self._latest, event.time)
