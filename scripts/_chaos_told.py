"""What the journal of a run owes for each of its children. Pure: events in, what is missing out, in words.

1. A child that its supervisor replaced had a fault: one FaultSeen of its attempt, whatever it died of.
2. The last child of a supervisor that ended in good order has one, too, if it said before that it now brings about a fault
   that ends it. (A supervisor that was killed tells nothing more: of its last child nothing is owed.)
3. A checkpoint that the disk did not take is told as missed before the same child commits a later one, and before that
   child ends. Nothing is owed by a child that was killed from outside, which may be before it could tell: a planned
   fault waits for the save under way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field

from backpropagate.events import (
    AttemptStarted,
    CheckpointCommitted,
    CheckpointMissed,
    Event,
    FaultSeen,
    Noticed,
    RunCreated,
    RunEnded,
    RunResumed,
)
from backpropagate_protocol.planned import announced

NOISE = {"print_noise", "flood"}
DISK = {"disk_full", "disk_error"}
_ENDS_NOTHING = {"hold", *NOISE, *DISK}


@dataclass
class _Child:
    attempt: int
    announced: list[str] = field(default_factory=list)
    failed: bool = False
    replaced: bool = False  # by its own supervisor
    in_good_order: bool = False  # its supervisor said how the run ended


def untold(events: Sequence[Event]) -> list[str]:
    """Rules 1 and 2."""
    missing = []
    for child in _children(events):
        deadly = [kind for kind in child.announced if kind not in _ENDS_NOTHING]
        if child.failed:
            continue
        if child.replaced:
            missing.append(f"attempt {child.attempt} was replaced, and no fault of it is told")
        elif child.in_good_order and deadly:
            missing.append(f"attempt {child.attempt} announced {deadly[-1]}, and no fault of it is told")
    return missing


def _children(events: Sequence[Event]) -> list[_Child]:
    found: list[_Child] = []
    current: _Child | None = None  # of the supervisor at hand
    for event in events:
        match event:
            case RunCreated() | RunResumed():
                current = None
            case AttemptStarted():
                if current is not None:
                    current.replaced = True
                current = _Child(event.attempt)
                found.append(current)
            case Noticed() if current is not None:
                kind = announced(event.text)
                current.announced += [kind] if kind else []
            case FaultSeen():
                for child in found:
                    child.failed = child.failed or child.attempt == event.attempt
            case RunEnded() if current is not None:
                current.in_good_order = True
            case _:
                pass
    return found


def missed_in_silence(events: Sequence[Event], struck: Set[int]) -> Iterator[str]:
    """Rule 3. `struck`: the attempts whose child was killed or stopped from outside."""
    attempt, failing = 0, False

    def ended() -> Iterator[str]:
        if failing and attempt not in struck:
            yield f"a checkpoint of attempt {attempt} that the disk did not take was not told"

    for event in events:
        match event:
            case AttemptStarted():
                yield from ended()
                attempt, failing = event.attempt, False
            case Noticed():
                failing = failing or announced(event.text) in DISK
            case CheckpointMissed():
                failing = False
            case CheckpointCommitted() if failing:
                yield f"{event.name} was committed, and the one that the disk did not take before was not told"
                failing = False
            case RunEnded():
                yield from ended()
                failing = False
            case _:
                pass
