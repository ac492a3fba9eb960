"""Where every event goes: the journal, the run's row in the history, and those who watch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from filelock import Timeout

from backpropagate.events import Event, ModelReady, Noticed, PhaseEntered, Recovering, RunCreated, RunEnded, RunResumed
from backpropagate.keep import history
from backpropagate.keep.journal import Journal
from backpropagate.keep.record import Record
from backpropagate.watch.sinks import Sink
from backpropagate_protocol.messages import Phase
from backpropagate_protocol.rundir import RunDir

_PHASE_EVERY = 5.0  # seconds between two journal lines of one phase
# They alternate for as long as a run trains; the checkpoint's own event tells it better.
_EVERYDAY = frozenset({Phase.TRAIN.value, Phase.CHECKPOINT.value})
_ROW_CHANGES = (RunCreated, RunResumed, ModelReady, Recovering, RunEnded)


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
        self._first: Event | None = None

    def begin(self, event: RunCreated | RunResumed, *, now: bool) -> None:
        """The first event. Not `now`: told before the next one, so that a run that never begins leaves nothing."""
        self._first = event
        if now:
            self._tell_first()

    @property
    def begun(self) -> bool:
        """Whether anything was told."""
        return self._first is None

    def _tell_first(self) -> None:
        first, self._first = self._first, None
        if first is not None:
            self.event(first)

    def event(self, event: Event) -> None:
        self._tell_first()
        if not isinstance(event, PhaseEntered) or self._worth_a_line(event):
            self._journal.append(event)
        self.record.fold(event)
        for sink in list(self._sinks):
            try:
                sink.event(event)
            except Exception:  # noqa: BLE001 - a sink's failure, whatever it is, never stops a run
                self._sinks.remove(sink)
        if isinstance(event, _ROW_CHANGES):
            self._index(event)

    def _worth_a_line(self, event: PhaseEntered) -> bool:
        now = self._clock()
        if event.phase == self._phase and now - self._phase_at < _PHASE_EVERY:
            return False
        if event.phase in _EVERYDAY and self._phase in _EVERYDAY:
            return False
        self._phase, self._phase_at = event.phase, now
        return True

    def _index(self, event: Event) -> None:
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
