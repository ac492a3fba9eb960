"""One child's death by a fault: what is known of its life, and what the record of it says."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import takewhile

import anyio

from backpropagate.doors.death import meaning
from backpropagate.events import FaultSeen
from backpropagate.judge import last_words
from backpropagate.judge.decisions import Death
from backpropagate.keep.faults import FaultRecord
from backpropagate_protocol.redact import redact

_ALSO = 5


@dataclass(slots=True)
class Life:
    """What is known of one child. Amounts of memory in MiB."""

    born: float = field(default_factory=time.monotonic)
    pid: int = 0
    measured: float = 0.0
    memory: int = 0
    device_memory: int = 0
    device_reserved: int = 0
    card: list[str] = field(default_factory=list)
    faults: list[FaultSeen] = field(default_factory=list)
    ended_by: str = ""


@dataclass(slots=True)
class Case:
    """A life that is over. `words`: the end of what it wrote into the log."""

    life: Life
    death: Death
    words: str
    seconds: float  # that it lasted
    done: str = ""
    advice: str = ""
    number: int = 0  # of its record; 0: it has none yet
    settled: anyio.Event = field(default_factory=anyio.Event)  # it is known what was done
    closed: anyio.Event = field(default_factory=anyio.Event)  # nothing more will be written of it

    @property
    def code(self) -> str:
        """Of the first thing that was wrong; empty if nothing was."""
        return self.life.faults[0].code if self.life.faults else ""

    def settle(self, done: str, advice: str) -> None:
        self.done, self.advice = done, advice
        self.settled.set()


def record_of(case: Case, number: int, kernel: Iterable[str]) -> FaultRecord:
    """`kernel`: what that wrote of it. The case must have a fault."""
    life, death = case.life, case.death
    first, *more = life.faults
    said = last_words.part(redact(case.words))
    by_itself = death.code is not None and death.code >= 0 and sys.platform != "win32"  # else a kill is a signal
    lines: Iterable[str] = said.lines
    if first.traceback and not said.stacks:
        lines = takewhile(lambda line: not line.startswith("Traceback"), lines)  # it is told once
    return FaultRecord(
        run_id=first.run_id,
        number=number,
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
        seconds=round(case.seconds, 1),
        memory=life.memory,
        device_memory=life.device_memory,
        device_reserved=life.device_reserved,
        needed=first.needed,
        free=first.free,
        card=tuple(dict.fromkeys(life.card)),
        kernel=tuple(redact(line) for line in kernel),
        last_lines=tuple(lines),
        earlier_lines=said.earlier,
        stacks=said.stacks or redact(first.traceback).strip(),
        done=case.done,
        advice=case.advice,
    )
