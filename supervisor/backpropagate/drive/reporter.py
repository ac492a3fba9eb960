"""Where every event goes: the journal, the run's row in the history, and those who watch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from filelock import Timeout

from backpropagate.events import (
    Event,
    Exported,
    LinkEnded,
    LinkMerged,
    LinkScored,
    LinkStarted,
    ModelReady,
    Noticed,
    PhaseEntered,
    Recovering,
    RunCreated,
    RunEnded,
    RunResumed,
)
from backpropagate.keep import history
from backpropagate.keep.journal import Journal
from backpropagate.keep.record import Record
from backpropagate.watch.sinks import Sink
from backpropagate_protocol.messages import Phase
from backpropagate_protocol.rundir import RunDir

_PHASE_EVERY = 5.0  # seconds between two journal lines of one phase
# They alternate for as long as a run trains; the events of checkpoint and evaluation tell it better.
_EVERYDAY = frozenset({Phase.TRAIN.value, Phase.CHECKPOINT.value, Phase.EVALUATE.value})
_ROW_CHANGES = (
    RunCreated,
    RunResumed,
    ModelReady,
    Recovering,
    LinkStarted,
    LinkEnded,
    LinkMerged,
    LinkScored,
    Exported,
    RunEnded,
)


class Reporter:
    """Passes events on. Neither a watcher that fails nor an index that cannot be written stops a run."""

    def __init__(
        self,
        run_dir: RunDir,
        journal: Journal,
        record: Record,
        sinks: Sequence[Sink],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run_dir, self._journal, self.record = run_dir, journal, record
        self._sinks = list(sinks)
        self._clock = clock
        self._phase, self._phase_at = "", 0.0
        self._index_failed = False
        self._kept_back: list[tuple[Event, bool]] = []  # and whether those who watch know it already
        self._rehearsing = False

    def begin(self, event: RunCreated | RunResumed, *, now: bool) -> None:
        """The first event. Not `now`: told before the next one, so that a run that never begins leaves nothing."""
        self._kept_back.append((event, False))
        if now:
            self._tell_kept_back()

    @property
    def begun(self) -> bool:
        """Whether anything was told."""
        return not self._kept_back

    @contextmanager
    def rehearsing(self) -> Iterator[None]:
        """What happens meanwhile is seen by those who watch; it is written down only if anything follows."""
        self._rehearsing = not self.begun
        try:
            yield
        finally:
            self._rehearsing = False

    def event(self, event: Event) -> None:
        if self._rehearsing:
            self._kept_back.append((event, True))
            self._show(event)
            return
        self._tell_kept_back()
        self._keep(event)
        self._show(event)
        self._index_if_it_changes(event)

    def _tell_kept_back(self) -> None:
        kept_back, self._kept_back = self._kept_back, []
        for event, known in kept_back:
            self._keep(event)
            if not known:
                self._show(event)
        if kept_back:
            self._index_if_it_changes(kept_back[0][0])

    def _keep(self, event: Event) -> None:
        if not isinstance(event, PhaseEntered) or self._worth_a_line(event):
            self._journal.append(event)
        self.record.fold(event)

    def _show(self, event: Event) -> None:
        for sink in list(self._sinks):
            try:
                sink.event(event)
            except Exception:  # noqa: BLE001 - a sink's failure, whatever it is, never stops a run
                self._sinks.remove(sink)

    def _worth_a_line(self, event: PhaseEntered) -> bool:
        now = self._clock()
        if event.phase == self._phase and now - self._phase_at < _PHASE_EVERY:
            return False
        if event.phase in _EVERYDAY and self._phase in _EVERYDAY and event.phase != self._phase:
            # A long one of them is told when it has lasted, so that it is seen to advance.
            self._phase, self._phase_at = event.phase, now
            return False
        self._phase, self._phase_at = event.phase, now
        return True

    def _index_if_it_changes(self, event: Event) -> None:
        if not isinstance(event, _ROW_CHANGES):
            return
        try:
            # While it trains the event loop must not stand still, and the next change writes the row; the last has none.
            patience = 30.0 if isinstance(event, RunEnded) else 2.0
            history.record(self._run_dir.output, self.record.row(), patience)
        except (OSError, Timeout) as error:
            if not self._index_failed:
                self._index_failed = True
                text = f"the run history cannot be written ({error}); `backprop list-runs --rebuild` makes it again"
                self.event(Noticed(time=event.time, run_id=event.run_id, level="warning", text=text))

    def close(self) -> None:
        for sink in self._sinks:
            try:
                sink.close()
            except Exception:  # noqa: BLE001 - as above
                continue
