"""RunSpec to the chain of jobs, and to how the first child begins. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from backpropagate.judge.halving import largest_divisor
from backpropagate_protocol.jobs import PreparedRef
from backpropagate_protocol.spec import RunSpec


class Stage(StrEnum):
    """One kind of Job in the chain. Merge and export follow the training where a spec asks for them."""

    TRAIN = "train"


@dataclass(frozen=True, slots=True)
class Start:
    """How the first child of a supervisor begins. `attempts`: children of this run before it.

    wait_for_card: the Job is not given out before CardKnown.
    """

    micro_batch: int
    gradient_checkpointing: bool | None = None
    prepared: PreparedRef | None = None
    attempts: int = 0
    wait_for_card: bool = False


def stages(spec: RunSpec) -> tuple[Stage, ...]:
    """The chain, in order."""
    return (Stage.TRAIN,)


def first_micro_batch(spec: RunSpec, *, fitted: int | None = None, card_memory: int | None = None) -> int:
    """The micro-batch to begin with: asked for, or what fitted before, or a guess from the card's memory (MiB).

    Always a divisor of the effective batch. card_memory None: no card, or not known.
    """
    effective = spec.train.effective_batch
    if spec.train.batch_size is not None:
        wish = spec.train.batch_size
    elif fitted is not None:
        wish = fitted
    elif card_memory is None:
        wish = 8
    elif card_memory >= 23_000:  # cards sold as 24 GB report a little less
        wish = 4
    elif card_memory >= 15_000:
        wish = 2
    else:
        wish = 1
    return largest_divisor(effective, wish)
