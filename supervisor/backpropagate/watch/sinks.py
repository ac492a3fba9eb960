"""The contract of those who watch a run: terminal, notebook, trackers. A sink's failure never stops a run."""

from __future__ import annotations

from typing import Protocol

from backpropagate.events import Event


class Sink(Protocol):
    """Gets every event, in order, on the supervisor's thread; must return at once."""

    def event(self, event: Event) -> None: ...

    def close(self) -> None: ...
