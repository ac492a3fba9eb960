"""One drilled run, from its spec to its end: its supervisors are real ones, in processes of their own, and may be killed."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from backpropagate.doors import launch
from backpropagate.doors.launch import SupervisorProcess
from backpropagate.drive.drill_leftovers import when_gone
from backpropagate.drive.drill_reading import Struck, children
from backpropagate.drive.drill_rows import Blow, Row
from backpropagate.events import Event, Noticed, RunEnded, Step
from backpropagate.keep import runs
from backpropagate.keep.journal import Follower
from backpropagate_protocol.errors import BackpropagateError
from backpropagate_protocol.planned import announced
from backpropagate_protocol.rundir import RunDir
from backpropagate_protocol.spec import RunSpec

_LOOK = 0.01
_FROZEN = 1.5  # longer than the deadline of a tick, shorter than anybody's patience
_BUSY = "STATE_BUSY"


@dataclass(frozen=True, slots=True)
class PlayedCard:
    """A card that is not there (gpu_script.py): `script` says how it falls ill, once `begin` exists."""

    script: Path
    begin: Path


class Scene:
    """`play` it once; then `events` has the whole story."""

    def __init__(
        self,
        row: Row,
        spec: RunSpec,
        at: int,
        patience: float,
        rival: Callable[[], RunSpec],
        card: PlayedCard | None = None,
    ) -> None:
        """`at`: the step before which a blow falls that no planned fault announces. `patience`: seconds for a supervisor."""
        self._row, self._at, self._patience, self._rival = row, at, patience, rival
        self.run_dir: RunDir = runs.create(spec)
        self._card = card
        self._follower = Follower(self.run_dir.events)
        self.events: list[Event] = []
        self.blow: Struck | None = None
        self.problems: list[str] = []
        self.refused: BackpropagateError | None = None  # why a supervisor did not even begin, or what it died of
        self.supervisors: list[int] = []

    def play(self) -> None:
        self._supervise(self._row.blow)
        if self.blow is not None and self._row.blow not in (Blow.FREEZE, Blow.CARD):
            self._supervise(None)

    def _supervise(self, blow: Blow | None) -> None:
        """One supervisor's life. Whatever happens here, it does not outlive it."""
        with ExitStack() as cleanup:
            supervisor = launch.start(self.run_dir, owned=True, gpu_script=self._card.script if self._card else None)
            cleanup.callback(supervisor.release)
            cleanup.callback(_ended, supervisor)
            self.supervisors.append(supervisor.process.pid)
            deadline = time.monotonic() + self._patience
            while supervisor.exit_code is None:
                if blow is not None and any(map(self._is_the_moment, self._hear())):
                    self._strike(supervisor, blow)
                    blow = None
                elif blow is None:
                    self._hear()
                if time.monotonic() > deadline:
                    self.problems.append(f"a supervisor did not end within {self._patience:.0f} s")
                    return
                time.sleep(_LOOK)
            self._hear()
            killed = self.blow is not None and self._row.blow is Blow.KILL and len(self.supervisors) == 1
            if not killed and not (self.events and isinstance(self.events[-1], RunEnded)):
                self.refused = supervisor.last_words()
                self.problems.append(self.refused.message)

    def _hear(self) -> list[Event]:
        events = self._follower.poll()
        self.events += events
        return events

    def _is_the_moment(self, event: Event) -> bool:
        if self._row.faults:
            return isinstance(event, Noticed) and announced(event.text) is not None
        return isinstance(event, Step) and event.step >= self._at - 1

    def _strike(self, supervisor: SupervisorProcess, blow: Blow) -> None:
        began = time.time()
        self.blow = Struck(began)
        match blow:
            case Blow.KILL:
                supervisor.end()
                self.blow = Struck(began, when_gone(children(self.events)))
                if self.blow.seen is None:
                    self.problems.append("its child outlived the supervisor")
            case Blow.STOP:
                supervisor.ask("stop")
            case Blow.LEAVE:
                supervisor.release()
            case Blow.TERMINATE:
                supervisor.process.terminate()
            case Blow.FREEZE:
                _freeze(supervisor)
            case Blow.CARD:
                assert self._card is not None
                self._card.begin.touch()
            case Blow.RIVAL:
                self._compete()
                self.blow = Struck(began, time.time())
                supervisor.ask("stop")

    def _compete(self) -> None:
        """The second one has to be refused, and to say by whom."""
        spec = self._rival()
        with launch.start(runs.create(spec), owned=True) as rival:
            self.supervisors.append(rival.process.pid)
            deadline = time.monotonic() + self._patience
            while rival.exit_code is None and time.monotonic() < deadline:
                time.sleep(_LOOK)
            if rival.exit_code is None:
                rival.end()
                self.problems.append("a second run in the same folder was not refused")
                return
            error = rival.last_words()
        if error.code != _BUSY or self.run_dir.run_id not in error.message:
            self.problems.append(f"a second run in the same folder ended with {error.code}: {error.message}")


def _ended(supervisor: SupervisorProcess) -> None:
    if supervisor.exit_code is None:
        supervisor.end()


def _freeze(supervisor: SupervisorProcess) -> None:
    if sys.platform != "win32":
        supervisor.process.send_signal(signal.SIGSTOP)
        try:
            time.sleep(_FROZEN)
        finally:
            supervisor.process.send_signal(signal.SIGCONT)
