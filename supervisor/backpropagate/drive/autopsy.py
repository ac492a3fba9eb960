"""Writes down what a child died of: gathers while it lives, looks around when it is dead, and adds what was done about it.

Neither the next child nor the end of the run waits for a disk that does not answer. A record that it does not take is lost,
and the run goes on; the journal still has the fault and how it ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from threading import Lock
from typing import TypeVar

import anyio
import msgspec

from backpropagate.doors import footprint, kernel_log
from backpropagate.drive.aside import aside
from backpropagate.drive.case import Case, Life, record_of
from backpropagate.drive.reporter import Reporter
from backpropagate.events import CardTrouble, Event, FaultRecorded, FaultSeen, Recovering, Step
from backpropagate.judge.decisions import Death, Finish
from backpropagate.keep import faults
from backpropagate.keep.faults import FaultRecord
from backpropagate.watch.wording import in_words
from backpropagate_protocol.catalogue import CATALOGUE
from backpropagate_protocol.rundir import RunDir

_MEASURE_EVERY = 0.2  # seconds; the driver's ticks come too late for a short life
_HELD = "; someone had stopped it (kill -STOP, a debugger, its terminal)"
_T = TypeVar("_T")
_PATIENCE = 10.0  # seconds that the kernel's log and the disk have for one record


class Autopsy:
    """One stage's. The driver tells it of every child and event; nothing here raises.

    look: what the kernel wrote of a process, by its number and the moment of its birth. `patience` is for tests.
    """

    def __init__(
        self,
        run_dir: RunDir,
        report: Reporter,
        *,
        look: Callable[[int, float], tuple[str, ...]] = kernel_log.hints,
        patience: float = _PATIENCE,
    ) -> None:
        self._run_dir, self._report, self._look, self._patience = run_dir, report, look, patience
        self._life = Life()
        self._dead: Case | None = None  # from its end until that was judged
        self._cases: list[Case] = []  # those that were judged
        self._number = 0  # of the newest record
        self._counting = Lock()  # a thread that was given up may go on beside the next one's
        self._pen = anyio.Lock()  # one writes at a time, so the numbers follow the deaths

    def begin(self) -> None:
        """Another child is made."""
        self._life = Life()

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
        if not self._life.ended_by:
            held = bool(self._life.pid) and footprint.stopped(self._life.pid)
            self._life.ended_by = why + (_HELD if held else "")

    def saw(self, event: Event) -> None:
        """Something was told of the run."""
        life = self._dead.life if self._dead else self._life
        match event:
            case Step():
                life.device_memory = max(life.device_memory, event.memory_used)
                life.device_reserved = max(life.device_reserved, event.memory_reserved)
            case CardTrouble():
                life.card.append(event.text)
            case FaultSeen():
                life.faults.append(event)
            case Recovering():
                case = self._dead or self._open
                if case is not None:
                    case.settle(_deed(event), _if_again(case.code))
            case _:
                pass

    def died(self, death: Death, words: str) -> None:
        """It is gone, and what follows is about to be judged. `words`: the end of what it wrote into the log."""
        life, self._life = self._life, Life()
        self._dead = Case(life, death, words, time.monotonic() - life.born)

    async def bury(self) -> None:
        """It was judged: if that found a fault, the record is written, and once more when it is known what was done.

        What was decided about it has been begun when this looks around.
        """
        case = self._judged()
        if case is not None:
            await self._follow(case)

    async def ended(self, finish: Finish) -> None:
        """The stage's last word. Returns when all records are written, or the disk has had its time."""
        if self._life.faults:  # a child that outlives every attempt to kill it
            self.died(Death(None, "could not be ended: the driver holds it"), "")
        unburied = self._judged()
        if self._open is not None:
            info = CATALOGUE.get(finish.code or "")
            said = finish.message.split("\n", 1)[0] or finish.status
            advice = finish.suggestion or (info.remedy if info else "")
            self._open.settle(f"ended the run ({finish.status}): {said}", advice)
        with anyio.move_on_after(self._patience):
            if unburied is not None:
                await self._follow(unburied)
            for case in self._cases:
                await case.closed.wait()

    @property
    def _open(self) -> Case | None:
        """The newest, as long as it is not known what was done."""
        return self._cases[-1] if self._cases and not self._cases[-1].settled.is_set() else None

    def _judged(self) -> Case | None:
        case, self._dead = self._dead, None
        if case is None or not case.life.faults or not self._report.begun:
            return None
        if self._open is not None:
            self._open.settle("tried again, and that failed, too", _if_again(self._open.code))
        self._cases.append(case)
        return case

    async def _follow(self, case: Case) -> None:
        written: tuple[FaultRecord, str] | None = None
        try:
            try:
                async with self._pen:
                    written = await self._within(partial(self._write, case))
            finally:
                record, path = written or (record_of(case, case.number, ()), "")
                self._tell(record, path)
            if path and not record.done:
                await case.settled.wait()
                record = msgspec.structs.replace(record, done=case.done, advice=case.advice)
                await self._within(partial(faults.write, self._run_dir, record))
        finally:
            case.closed.set()

    def _write(self, case: Case) -> tuple[FaultRecord, str]:
        life = case.life
        with self._counting:
            case.number = self._number = max(self._number + 1, faults.next_number(self._run_dir))
        kernel = self._look(life.pid, life.born) if life.pid else ()
        # Only now: if the kernel's log took its time, it is known by now what was done.
        record = record_of(case, case.number, kernel)
        return record, faults.write(self._run_dir, record)

    async def _within(self, work: Callable[[], _T]) -> _T | None:
        """What comes of it in the time that a disk gets; None if nothing does."""
        with anyio.move_on_after(self._patience):
            try:
                return await aside(work)
            except OSError:
                pass
        return None

    def _tell(self, record: FaultRecord, path: str) -> None:
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


def _deed(event: Recovering) -> str:
    lost = f"; {event.steps_lost} {'step' if event.steps_lost == 1 else 'steps'} done again" if event.steps_lost else ""
    return in_words(event) + lost


def _if_again(code: str) -> str:
    info = CATALOGUE.get(code)
    return "Nothing: the run went on by itself." + (f" If it comes again: {info.remedy}" if info else "")
