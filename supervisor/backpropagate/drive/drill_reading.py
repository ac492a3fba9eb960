"""What a drilled run's journal tells: when the fault struck, was noticed and got over, and whether every sample came as planned.

Pure. Seconds are those of the journal itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from backpropagate.drive.drill_rows import Blow, End, Row
from backpropagate.events import (
    AttemptStarted,
    BatchHalved,
    CardTrouble,
    CheckpointCommitted,
    CheckpointMissed,
    CheckpointQuarantined,
    Event,
    FaultSeen,
    Heat,
    ModelReady,
    Noticed,
    RunEnded,
    Step,
    StopRequested,
)
from backpropagate_protocol.planned import announced

_SEEN = (FaultSeen, CheckpointMissed, BatchHalved)
_TELLING = (Step, CheckpointCommitted, RunEnded)
_SPOILT = {"torn_save": "its damage was not seen", "bitflip_save": "its damage was not seen"}


@dataclass(frozen=True, slots=True)
class Truth:
    """The run to which nothing happens: (samples seen, order) after each step that was told, and its final loss.

    `order` is chained over all samples so far, so that one equal order says the same of every step before it.
    """

    after: dict[int, tuple[int, int]]
    final_loss: float

    def differs(self, step: int, samples_seen: int, order: int) -> bool:
        """False for a step that was not told."""
        return step in self.after and self.after[step] != (samples_seen, order)


@dataclass(frozen=True, slots=True)
class Struck:
    """What was done from outside: when, and when its first effect was seen from there. Seconds since 1970."""

    at: float
    seen: float | None = None


def truth(events: Sequence[Event]) -> Truth | None:
    """None if that run itself did not come to its end in one go."""
    ended = events[-1] if events else None
    if not isinstance(ended, RunEnded) or ended.status != "completed" or ended.final_loss is None:
        return None
    if any(isinstance(event, FaultSeen) for event in events):
        return None
    after = {event.step: (event.samples_seen, event.order) for event in events if isinstance(event, _TELLING)}
    return Truth(after, ended.final_loss)


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds from the fault until it was noticed, and until the first step after it; None where there is no such moment."""

    noticed: float | None
    recovered: float | None


def times(row: Row, events: Sequence[Event], blow: Struck | None) -> Times:
    struck = blow.at if blow is not None else _announced_at(row, events)
    if struck is None:
        return Times(None, None)
    later = [event for event in events if event.time >= struck]
    if blow is not None and blow.seen is not None:
        seen: float | None = blow.seen
    else:
        seen = _first(later, lambda event: isinstance(event, (*_SEEN, Heat, CardTrouble, StopRequested)))
    if seen is None:
        return Times(None, None)
    return Times(seen - struck, _over(row, [event for event in later if event.time >= seen], struck))


def _announced_at(row: Row, events: Sequence[Event]) -> float | None:
    """The last announcement of the fault that the row is about: what spoils a checkpoint is not announced."""
    kinds = {fault.kind for fault in row.faults}
    return _first(events, lambda event: isinstance(event, Noticed) and announced(event.text) in kinds)


def _over(row: Row, later: Sequence[Event], struck: float) -> float | None:
    """A step of the next child; of the same one, where none was lost; a checkpoint, where it was one that failed."""
    if row.end is End.GIVEN_UP:
        return None
    if any(isinstance(event, CheckpointMissed) for event in later):
        over = _first(later, lambda event: isinstance(event, CheckpointCommitted))
    else:
        begun = [i for i, event in enumerate(later) if isinstance(event, ModelReady)]
        over = _first(later[begun[-1] if begun else 0 :], lambda event: isinstance(event, Step))
    return None if over is None else over - struck


def _first(events: Sequence[Event], wanted: Callable[[Event], bool]) -> float | None:
    return next((event.time for event in events if wanted(event)), None)


def steps_lost(events: Sequence[Event]) -> int:
    """Steps that were done again."""
    lost, last = 0, 0
    for event in events:
        if isinstance(event, Step):
            last = event.step
        elif isinstance(event, ModelReady):
            lost += max(0, last - event.step)
            last = event.step
    return lost


def other_samples(events: Sequence[Event], truth: Truth, tolerance: float) -> list[str]:
    """In what the run differs from one to which nothing happened; `tolerance`: of the loss, relative.

    Step by step, those done again included; of a run that was given up, as far as it came.
    """
    wrong = [
        f"at step {event.step} other samples had been seen than planned"
        for event in events
        if isinstance(event, _TELLING) and truth.differs(event.step, event.samples_seen, event.order)
    ]
    batches = {
        event.micro_batch * event.accumulation for event in events if isinstance(event, AttemptStarted | BatchHalved)
    }
    if len(batches) > 1:
        wrong.append(f"the effective batch was {' and '.join(map(str, sorted(batches)))}")
    ended = _ended(events)
    if ended is not None and ended.status == "completed":
        if ended.step != max(truth.after):
            wrong.append(f"{ended.step} steps were done instead of {max(truth.after)}")
        loss = math.nan if ended.final_loss is None else ended.final_loss
        if not math.isclose(loss, truth.final_loss, rel_tol=tolerance):
            wrong.append(f"the loss came to {loss:.6g} instead of {truth.final_loss:.6g}")
    return wrong[:3]


def not_as_expected(row: Row, events: Sequence[Event]) -> list[str]:
    """In what the run ended otherwise than the row says."""
    ended = _ended(events)
    if ended is None:
        return ["its journal has no last word"]
    faults = [event for event in events if isinstance(event, FaultSeen)]
    told = f"{ended.status}, {ended.code or 'no code'}: {ended.message or 'no message'}"
    wrong = []
    if row.end is End.GIVEN_UP:
        if ended.status != "failed" or ended.code != row.code:
            wrong.append(f"it ended as {told}")
        return wrong
    if ended.status != "completed":
        wrong.append(f"it ended as {told}")
    if row.end is End.RECOVERED:
        in_its_child = [row.code for event in events if row.halves and isinstance(event, BatchHalved)]
        seen = [fault.code for fault in faults] + in_its_child
        if not seen or set(seen) != {row.code}:
            wrong.append(f"{row.code} was to be seen, and {', '.join(seen) or 'nothing'} was")
    elif faults:
        wrong.append(f"a child was lost: {faults[0].message}")
    if row.end is End.UNMOVED and row.code and not any(isinstance(event, CheckpointMissed) for event in events):
        wrong.append("the failed checkpoint was not told")
    if row.end is End.RESUMED and row.blow is not Blow.KILL:
        first = next(event for event in events if isinstance(event, RunEnded))
        if (first.status, first.code) != ("interrupted", row.code):
            wrong.append(f"asked to stop, it ended as {first.status}, {first.code}")
    if row.standby and not any(isinstance(event, AttemptStarted) and event.standby for event in events):
        wrong.append("the standby did not take over")
    if was_halved(events) != row.halves:
        wrong.append("the micro-batch was not halved" if row.halves else "the micro-batch was halved")
    levels = {event.level for event in events if isinstance(event, Heat)}
    if row.heat and row.heat not in levels:
        wrong.append(f"the heat was to be met with {row.heat}, and was with {', '.join(sorted(levels)) or 'nothing'}")
    if row.heat == "pause" and steps_lost(events):
        wrong.append("it was rested without a save")
    wrong += _lost_although_kept(events)
    put_aside = any(isinstance(event, CheckpointQuarantined) for event in events)
    wrong += [text for fault in row.faults if not put_aside and (text := _SPOILT.get(fault.kind))]
    return wrong


def not_struck(row: Row, events: Sequence[Event], blow: Struck | None) -> list[str]:
    """A row to which nothing was done proves nothing. What spoils a checkpoint is not announced, but has to be seen."""
    if row.blow is not None and blow is None:
        return ["the blow never fell"]
    done = {announced(event.text) for event in events if isinstance(event, Noticed)}
    missing = {fault.kind for fault in row.faults} - done - set(_SPOILT)
    return [f"{', '.join(sorted(missing))} never came about"] if missing else []


def _lost_although_kept(events: Sequence[Event]) -> list[str]:
    """Every child has to go on from the newest checkpoint that was told and is good."""
    kept: dict[str, int] = {}
    wrong = []
    for event in events:
        match event:
            case CheckpointCommitted():
                kept[event.name] = event.step
            case CheckpointQuarantined():
                kept.pop(event.name, None)
            case ModelReady() if event.step < max(kept.values(), default=0):
                wrong.append(f"it went on from step {event.step} although step {max(kept.values())} was kept")
            case _:
                pass
    return wrong


def in_a_word(events: Sequence[Event]) -> str:
    """`completed`, or the code with which it ended."""
    ended = _ended(events)
    return "no end" if ended is None else ended.code or ended.status


def children(events: Sequence[Event]) -> set[int]:
    """The process ids of all children that were given work."""
    return {event.pid for event in events if isinstance(event, AttemptStarted)}


def _ended(events: Sequence[Event]) -> RunEnded | None:
    last = events[-1] if events else None
    return last if isinstance(last, RunEnded) else None


def was_halved(events: Sequence[Event]) -> bool:
    """Whether a step was summed up in other pieces: its last bits may differ then."""
    return len({e.micro_batch for e in events if isinstance(e, AttemptStarted | BatchHalved)}) > 1
