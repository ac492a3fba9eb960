"""The terminal's view of a run: a live one for people, plain lines for logs. Both go to stderr; stdout is for data."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, TextIO

from backpropagate import events
from backpropagate.events import Event
from backpropagate.screen import terminal
from backpropagate.watch.sinks import Sink
from backpropagate.watch.view import RunView
from backpropagate.watch.wording import in_all_words, in_words, progress_line
from backpropagate_protocol.redact import redact

if TYPE_CHECKING:
    from backpropagate.watch.live import LiveDisplay

_INTERVAL = 30.0  # seconds between two lines of progress in a log


def sink_for(stream: TextIO, environ: Mapping[str, str], *, verbose: bool = False) -> Sink:
    """The view that fits the stream: live where a person watches, plain lines elsewhere (and for TERM=dumb).

    verbose: with the tracebacks of faults.
    """
    if terminal(stream) and environ.get("TERM") != "dumb":
        return LiveSink(stream, verbose=verbose)
    return PlainSink(stream, verbose=verbose)


class PlainSink:
    """One line for the first step, then one every 30 s, and one for each event that matters; no cursor games.

    Each line begins with the first eight characters of the run id; of a campaign with those of its own, whichever of its
    runs is told of.
    """

    def __init__(self, stream: TextIO | None = None, interval: float = _INTERVAL, *, verbose: bool = False) -> None:
        self._stream = stream or sys.stderr
        self._words = in_all_words if verbose else in_words
        self._interval = interval
        self._view = RunView()
        self._last_progress = float("-inf")
        self._phase = ""

    def event(self, event: Event) -> None:
        self._view.see(event)
        text = self._progress(event) if isinstance(event, events.Step) else self._in_words(event)
        if text:
            self._stream.write(redact(f"{self._view.run_id[:8]} {text}\n"))
            self._stream.flush()

    def _progress(self, step: events.Step) -> str:
        if step.time - self._last_progress < self._interval and step.step < step.total_steps:
            return ""
        self._last_progress = step.time
        return progress_line(self._view)

    def _in_words(self, event: Event) -> str:
        if isinstance(event, events.AttemptStarted | events.LinkStarted):
            self._last_progress, self._phase = float("-inf"), ""
        if isinstance(event, events.PhaseEntered):
            if event.phase == self._phase or self._view.stage.name:
                return ""  # a stage says what it does when it begins
            self._phase = event.phase
        return self._words(event)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # nobody may be reading any more
            self._stream.flush()


class LiveSink:
    """A few lines that change in place; what matters scrolls by above them. rich is imported with the first event."""

    def __init__(self, stream: TextIO, *, verbose: bool = False) -> None:
        self._stream = stream
        self._words = in_all_words if verbose else in_words
        self._view = RunView()
        self._display: LiveDisplay | None = None

    def event(self, event: Event) -> None:
        if self._display is None:
            from backpropagate.watch.live import LiveDisplay

            self._display = LiveDisplay(self._stream)
        self._view.see(event)
        # What the lines below show anyway is not said twice.
        quiet = isinstance(event, events.Step | events.PhaseEntered | events.CheckpointCommitted)
        self._display.show(self._view, "" if quiet else self._words(event))

    def redraw(self) -> None:
        """At once, rather than with the next tick."""
        if self._display is not None:
            self._display.redraw()

    def close(self) -> None:
        if self._display is not None:
            with contextlib.suppress(OSError):  # the terminal may have been closed; the run went on without it
                self._display.close()
