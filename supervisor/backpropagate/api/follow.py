"""Follows a run from the process that started it: events in, sinks fed, interrupts turned into wishes, until it ends.

Blocks the calling thread and needs no event loop, so it works in a script, in a notebook cell (whose loop may be running)
and in any thread. The run itself is another process and never notices who watches it.
"""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Sequence

from backpropagate import events
from backpropagate.api.blame import blame
from backpropagate.doors.launch import SupervisorProcess
from backpropagate.keep.journal import Follower
from backpropagate.watch.sinks import Sink

_POLL_SECONDS = 0.05
# The first interrupt asks for a checkpoint, the second for an end at once, the third gives up waiting.
_WISHES = ("stop", "kill")


class StopFollowing(Exception):
    """Raised by a sink that wants the run to stop: it is asked, once, to save and end, and followed to its end."""


def follow(supervisor: SupervisorProcess, follower: Follower, sinks: Sequence[Sink]) -> events.RunEnded:
    """The last event of the run. Raises what kept the supervisor from beginning, or that it died without a word.

    Ctrl-C (an interrupted notebook cell) asks the run to save and stop, a second one ends it at once.
    """
    interrupts = 0
    audience = _Audience(supervisor, sinks)
    while True:
        try:
            # Asked before the last look, so that nothing written before the end is missed.
            gone = supervisor.exit_code is not None
            audience.tell(follower.poll())
            if audience.ended is not None:
                return audience.ended
            if gone:
                raise supervisor.last_words()
            time.sleep(_POLL_SECONDS)
        except KeyboardInterrupt:
            if interrupts >= len(_WISHES):
                raise
            supervisor.ask(_WISHES[interrupts])
            interrupts += 1


class _Audience:
    """Feeds every event to every sink. An interrupt in the middle ends one call; `tell` goes on with the next."""

    def __init__(self, supervisor: SupervisorProcess, sinks: Sequence[Sink]) -> None:
        self._supervisor = supervisor
        self._watching = list(sinks)
        self._untold: deque[tuple[events.Event, Sink]] = deque()
        self._last: events.RunEnded | None = None

    @property
    def ended(self) -> events.RunEnded | None:
        """The end of the run, once everybody was told of it."""
        return None if self._untold else self._last

    def tell(self, news: Sequence[events.Event]) -> None:
        for event in news:
            if isinstance(event, events.RunEnded):
                self._last = event
            self._untold.extend((event, sink) for sink in self._watching)
        while self._untold:
            event, sink = self._untold.popleft()
            if sink in self._watching:
                self._feed(sink, event)

    def _feed(self, sink: Sink, event: events.Event) -> None:
        try:
            sink.event(event)
        except StopFollowing:
            self._supervisor.ask_once("stop")
        except Exception as error:  # noqa: BLE001 - whoever watches must not be able to harm the run
            self._watching.remove(sink)
            found = blame(error)
            text = f"a callback failed and is not called any more; the run goes on\n{found.text}"
            warnings.warn_explicit(text, UserWarning, found.file, found.line)
