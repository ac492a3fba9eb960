"""How the first child of a training begins, and with which micro-batch. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from backpropagate.judge.halving import largest_divisor, least_batch
from backpropagate_protocol.jobs import PreparedRef
from backpropagate_protocol.spec import RunSpec


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
    held_out: PreparedRef | None = None  # the rows that are scored meanwhile, if there are any
    source_digest: str = ""  # of the files that `prepared` was made of
    slowest_save: float | None = None  # of this run, seconds; None: there was none yet


def first_micro_batch(
    spec: RunSpec, *, fitted: int | None = None, sized: int | None = None, card_memory: int | None = None
) -> int:
    """The micro-batch to begin with: asked for, or what fitted before, or what an estimate says that fits (`sized`), or a guess
    from the card's memory (MiB).

    Always a divisor of the effective batch. card_memory None: no card, or not known. sized 0: the estimate says that none fits.
    """
    effective = spec.train.effective_batch
    if spec.train.batch_size is not None:
        wish = spec.train.batch_size
    elif fitted is not None:
        wish = fitted
    elif sized is not None:
        wish = max(1, sized)
    elif card_memory is None:
        wish = 8
    elif card_memory >= 23_000:  # cards sold as 24 GB report a little less
        wish = 4
    elif card_memory >= 15_000:
        wish = 2
    else:
        wish = 1
    return largest_divisor(effective, wish, least_batch(spec.train.method))
