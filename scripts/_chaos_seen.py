"""What was seen of the runs of a chaos gate, and what the undisturbed one came to."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum, auto


class Sort(Enum):
    """What kind of promise a problem breaks."""

    ENDING = auto()  # a supervisor that did not end, or as nobody asked it to
    LEFT_BEHIND = auto()  # a process, a lock, a file
    UNTOLD = auto()  # a fault or a line of the journal
    CHECKPOINT = auto()
    RESULT = auto()  # other samples, weights, files or loss than the undisturbed run's


@dataclass(frozen=True)
class Problem:
    """One broken promise, in words."""

    sort: Sort
    text: str


@dataclass(frozen=True)
class Truth:
    """What the run comes to when nothing happens to it."""

    samples_seen: int
    order: int
    final_loss: float
    weights: dict[str, bytes]
    files: set[str]  # the names of all that belongs to the result


@dataclass
class Seen:
    """What was seen of one run or of several. Times in seconds."""

    runs: int = 0
    faults: Counter[str] = field(default_factory=Counter)  # each once, and only what ends or damages something
    noise: Counter[str] = field(default_factory=Counter)  # what children did besides, that ends nothing
    problems: list[Problem] = field(default_factory=list)
    supervisors: int = 0
    killed_supervisors: int = 0
    unheard: int = 0  # supervisors asked to end before they listened
    children: int = 0
    compared: int = 0  # runs that came to a result, which was held against the undisturbed one's
    same_samples: int = 0  # of them
    halved: int = 0  # of them, those whose micro-batch was halved: the same samples, summed up in another order
    identical: int = 0  # of them, those with the undisturbed run's weights to the bit, nothing halved
    halved_and_identical: int = 0  # the same, although halved
    committed: int = 0
    put_aside: int = 0
    spoilt: int = 0  # checkpoints damaged from outside
    repeated: int = 0  # ended because one fault came twice at one step, as it should, and gone on with
    noticed: list[float] = field(default_factory=list)  # a killed child
    orphaned: list[float] = field(default_factory=list)  # how long a child outlived its killed supervisor
    hang_noticed: list[float] = field(default_factory=list)  # from the last sign of progress
    buried: list[float] = field(default_factory=list)  # from a hang noticed to the next thing done
    recovered: list[float] = field(default_factory=list)  # fault to first new step, back-off not counted
    taken_over: list[float] = field(default_factory=list)  # the same where a standby took over
    steps_lost: list[int] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)  # bytes, of each supervisor (see `_bench_memory`)
    descriptors: list[int] = field(default_factory=list)  # growth from a supervisor's first children to its last

    def add(self, other: Seen) -> None:
        for name, value in vars(other).items():
            if isinstance(value, Counter):
                getattr(self, name).update(value)
            elif isinstance(value, list):
                getattr(self, name).extend(value)
            else:
                setattr(self, name, getattr(self, name) + value)

    def broken(self, *sorts: Sort) -> int:
        """How many problems are of these sorts."""
        return sum(problem.sort in sorts for problem in self.problems)
