"""What was seen of the runs of a chaos gate, and what the undisturbed one came to."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


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
    faults: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    supervisors: int = 0
    children: int = 0
    halved: int = 0  # runs whose micro-batch was halved: the same samples, summed up in another order
    halved_and_identical: int = 0  # those of them whose weights are the undisturbed run's to the bit all the same
    committed: int = 0
    put_aside: int = 0
    repeated: int = 0  # ended because one fault came twice at one step, as it should, and gone on with
    noticed: list[float] = field(default_factory=list)  # a killed child
    orphaned: list[float] = field(default_factory=list)  # how long a child outlived its killed supervisor
    hang_noticed: list[float] = field(default_factory=list)  # from the last sign of progress
    buried: list[float] = field(default_factory=list)  # from a hang noticed to the next thing done
    recovered: list[float] = field(default_factory=list)  # fault to first new step, back-off not counted
    taken_over: list[float] = field(default_factory=list)  # the same where a standby took over
    steps_lost: list[int] = field(default_factory=list)
    peak_memory: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)  # growth from a supervisor's first children to its last

    def add(self, other: Seen) -> None:
        for name, value in vars(other).items():
            if isinstance(value, Counter):
                getattr(self, name).update(value)
            elif isinstance(value, list):
                getattr(self, name).extend(value)
            else:
                setattr(self, name, getattr(self, name) + value)
