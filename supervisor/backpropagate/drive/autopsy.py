"""Writes down what a child died of: gathers while it lives, looks around when it is dead, and adds what was done about it.

A record that the disk does not take is lost, and the run goes on; the journal still has the fault and how it ended.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import takewhile

import msgspec

from backpropagate.doors import footprint, kernel_log
from backpropagate.doors.death import meaning
from backpropagate.drive.reporter import Reporter
from backpropagate.events import CardTrouble, Event, FaultRecorded, FaultSeen, Recovering, Step
from backpropagate.judge import last_words
from backpropagate.judge.decisions import Death, Finish
from backpropagate.keep import faults
from backpropagate.keep.faults import FaultRecord
from backpropagate.watch.wording import in_words
from backpropagate_protocol.catalogue import CATALOGUE
from backpropagate_protocol.redact import redact
from backpropagate_protocol.rundir import RunDir

_ALSO = 5
_MEASURE_EVERY = 0.2  # seconds; the driver's ticks come too late for a short life


@dataclass(slots=True)
class _Life:
    """What is known of one child."""

    born: float = field(default_factory=time.monotonic)
    pid: int = 0
    measured: float = 0.0
    memory: int = 0
    device_memory: int = 0
    device_reserved: int = 0
    card: list[str] = field(default_factory=list)
    faults: list[FaultSeen] = field(default_factory=list)
    ended_by: str = ""


class Autopsy:
    """One stage's. The driver tells it of every child and event; nothing here raises."""

    def __init__(self, run_dir: RunDir, report: Reporter) -> None:
        self._run_dir, self._report = run_dir, report
        self._life = _Life()
        self._dead: tuple[_Life, Death, str] | None = None  # from its end until that was judged
        self._open: FaultRecord | None = None  # until it is known what was done
        self._done = self._advice = ""  # of the dead one

    def begin(self) -> None:
        """Another child is made."""
        self._life = _Life()

    def born(self, pid: int) -> None:
        self._life.pid = pid

    def measure(self, *, now: bool = False) -> None:
        """A moment to look at its memory, of which the system knows nothing after its end. Not `now`: not too often."""
        since = time.monotonic() - self._life.measured
        if self._life.pid and (now or since >= _MEASURE_EVERY):
            self._life.measured = time.monotonic()
            self._life.memory = max(self._life.memory, footprint.peak(self._life.pid))

    def killed(self, why: str) -> None:
        self.measure(now=True)
        self._life.ended_by = self._life.ended_by or why

    def saw(self, event: Event) -> None:
        """Something was told of the run."""
        life = self._dead[0] if self._dead else self._life
        match event:
            case Step():
                life.device_memory = max(life.device_memory, event.memory_used)
                life.device_reserved = max(life.device_reserved, event.memory_reserved)
            case CardTrouble():
                life.card.append(event.text)
            case FaultSeen():
                life.faults.append(event)
            case Recovering():
                code = life.faults[0].code if self._dead and life.faults else self._open.code if self._open else ""
                self._settle(_deed(event), _if_again(code))
            case _:
                pass

    def died(self, death: Death, words: str) -> None:
        """It is gone, and what follows is about to be judged. `words`: the end of what it wrote into the log."""
        self._dead, self._life = (self._life, death, words), _Life()

    def bury(self) -> None:
        """It was judged: if that found a fault, the record is written."""
        if self._dead is None:
            return
        life, death, words = self._dead
        done, advice, self._done, self._advice = self._done, self._advice, "", ""
        self._dead = None
        if not life.faults or not self._report.begun:
            return
        if self._open is not None:
            self._settle("tried again, and that failed, too", _if_again(self._open.code))
        record = msgspec.structs.replace(_record(life, death, words), done=done, advice=advice)
        try:
            record = msgspec.structs.replace(record, number=faults.next_number(self._run_dir))
            path = faults.write(self._run_dir, record)
        except OSError:
            path = ""
        self._report.event(
            FaultRecorded(
                time=time.time(),
                run_id=record.run_id,
                number=record.number,
                attempt=record.attempt,
                pid=record.pid,
                death=record.death,
                exit_code=record.exit_code,
                record=path,
                stage=record.stage,
            )
        )
        self._open = record if path and not done else None

    def ended(self, finish: Finish) -> None:
        """The stage's last word."""
        if self._life.faults:  # a child that outlives every attempt to kill it
            self.died(Death(None, "could not be ended: the driver holds it"), "")
            self.bury()
        if self._open is not None:
            info = CATALOGUE.get(finish.code or "")
            said = finish.message.split("\n", 1)[0] or finish.status
            self._settle(f"ended the run ({finish.status}): {said}", finish.suggestion or (info.remedy if info else ""))

    def _settle(self, done: str, advice: str) -> None:
        if self._dead is not None:
            self._done, self._advice = done, advice
        elif self._open is not None:
            record, self._open = self._open, None
            try:
                faults.write(self._run_dir, msgspec.structs.replace(record, done=done, advice=advice))
            except OSError:
                pass  # as it stands it says what happened


def _record(life: _Life, death: Death, words: str) -> FaultRecord:
    first, *more = life.faults
    said = last_words.part(redact(words))
    by_itself = death.code is not None and death.code >= 0 and sys.platform != "win32"  # else a kill is a signal
    lines: Iterable[str] = said.lines
    if first.traceback and not said.stacks:
        lines = takewhile(lambda line: not line.startswith("Traceback"), lines)  # it is told once
    return FaultRecord(
        run_id=first.run_id,
        number=0,
        time=first.time,
        kind=first.kind,
        code=first.code,
        message=redact(first.message),
        attempt=first.attempt,
        stage=first.stage,
        phase=first.phase,
        step=first.step,
        also=tuple(f"{each.code}: {redact(each.message)}" for each in more[:_ALSO]),
        pid=life.pid,
        death="ended by itself, with 0" if death.code == 0 and not first.death else death.text,
        exit_code=death.code,
        meaning="" if life.ended_by else meaning(death),
        ended_by="" if by_itself else redact(life.ended_by),
        seconds=round(time.monotonic() - life.born, 1),
        memory=life.memory,
        device_memory=life.device_memory,
        device_reserved=life.device_reserved,
        needed=first.needed,
        free=first.free,
        card=tuple(dict.fromkeys(life.card)),
        kernel=tuple(redact(line) for line in kernel_log.hints(life.pid, life.born)) if life.pid else (),
        last_lines=tuple(lines),
        stacks=said.stacks or redact(first.traceback).strip(),
    )


def _deed(event: Recovering) -> str:
    lost = f"; {event.steps_lost} {'step' if event.steps_lost == 1 else 'steps'} done again" if event.steps_lost else ""
    return in_words(event) + lost


def _if_again(code: str) -> str:
    info = CATALOGUE.get(code)
    return "Nothing: the run went on by itself." + (f" If it comes again: {info.remedy}" if info else "")
