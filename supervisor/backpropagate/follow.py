"""Follows a run from the process that started it: events in, sinks fed, interrupts turned into wishes, until it ends.

Blocks the calling thread and needs no event loop, so it works in a script, in a notebook cell (whose loop may be running)
and in any thread. The run itself is another process and never notices who watches it.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence

from backpropagate import events
from backpropagate.journal import Follower
from backpropagate.launch import SupervisorProcess
from backpropagate.sinks import Sink
from backpropagate_protocol.errors import BackpropagateError

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
    watching = list(sinks)
    while True:
        try:
            ended = _next(supervisor, follower, watching)
            if ended is not None:
                return ended
            time.sleep(_POLL_SECONDS)
        except KeyboardInterrupt:
            if interrupts >= len(_WISHES):
                raise
            supervisor.ask(_WISHES[interrupts])
            interrupts += 1


def _next(supervisor: SupervisorProcess, follower: Follower, watching: list[Sink]) -> events.RunEnded | None:
    gone = (
        supervisor.exit_code is not None
    )  # asked before the last look, so that nothing written before the end is missed
    ended: events.RunEnded | None = None
    for event in follower.poll():
        _feed(supervisor, watching, event)
        if isinstance(event, events.RunEnded):
            ended = event
    if ended is None and gone:
        raise supervisor.last_words()
    return ended


def _feed(supervisor: SupervisorProcess, watching: list[Sink], event: events.Event) -> None:
    for sink in list(watching):
        try:
            sink.event(event)
        except StopFollowing:
            supervisor.ask_once("stop")
        except BackpropagateError:
            raise
        except Exception as error:  # noqa: BLE001 - whoever watches must not be able to harm the run
            watching.remove(sink)
            warnings.warn(
                f"a callback failed and is not called any more: {type(error).__name__}: {error}", stacklevel=2
            )
