"""Where a run stands in its samples: how many steps there are, which samples each takes, and the account of those consumed.

Needs no framework: every backend that learns from prepared rows goes the same way through them, step by step.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

from backpropagate_protocol.spec import TrainSpec


@dataclass(frozen=True, slots=True)
class Consumed:
    """One micro-batch: its sample ids as little-endian int64, and its real tokens (without padding)."""

    ids: bytes
    tokens: int


@dataclass(slots=True)
class Account:
    """Samples consumed since the start of the run, and the CRC-32 chained over their ids.

    Chaining byte by byte makes the order independent of how the samples were cut into micro-batches.
    """

    samples: int = 0
    order: int = 0
    tokens: int = 0  # of this attempt

    def take(self, consumed: Consumed) -> None:
        self.samples += len(consumed.ids) // 8
        self.order = zlib.crc32(consumed.ids, self.order)
        self.tokens += consumed.tokens


@dataclass(frozen=True, slots=True)
class Course:
    """How many optimizer steps there are, and where in the samples each of them ends."""

    rows: int
    effective_batch: int
    total_steps: int

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.rows / self.effective_batch)

    def micro_batches_before(self, step: int, accumulation: int) -> int:
        """Micro-batches of the current epoch that are trained on when `step` is done."""
        return (step % self.steps_per_epoch) * accumulation

    def samples_at(self, step: int) -> int:
        """Samples consumed when `step` is done: the last batch of an epoch may be smaller."""
        epochs, within = divmod(step, self.steps_per_epoch)
        return epochs * self.rows + min(within * self.effective_batch, self.rows)


def course(spec: TrainSpec, rows: int) -> Course:
    per_epoch = math.ceil(rows / spec.effective_batch)
    total = spec.steps if spec.steps is not None else math.ceil((spec.epochs or 1.0) * per_epoch)
    return Course(rows, spec.effective_batch, total)
