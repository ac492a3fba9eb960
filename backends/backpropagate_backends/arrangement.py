"""In which order an epoch goes through its samples: shuffled, as they stand, easy ones first, or those of a length together.

Needs no framework. Every order is made of the epoch's own shuffle, by the optimizer steps and never by the micro-batches, so
that a halved batch reads the same samples in the same steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backpropagate_protocol.prepared import PAIRS, Prepared
from backpropagate_protocol.spec import RunSpec

Ids = NDArray[np.int64]

# An easy-first order is shuffled within tenths of the samples: a step of nothing but the very easiest would teach little.
BANDS = 10
# Steps whose samples are put in order of length together. More of them: less padding. All of them: no shuffle left.
_SORTED_STEPS = 50
# Added to the seed of an epoch for the order of its steps, which must not be that of its samples.
STEPS_SEED = 0x5EED


@dataclass(frozen=True, slots=True)
class Arrangement:
    """What is made of a shuffle. bands: for each sample its tenth, 0 the easiest; lengths: tokens of each sample."""

    given: bool = False
    bands: Ids | None = None
    lengths: Ids | None = None
    effective_batch: int = 1

    @property
    def plain(self) -> bool:
        """Whether an epoch is its shuffle."""
        return not self.given and self.bands is None and self.lengths is None

    def steps(self, rows: int) -> int:
        """Full optimizer steps of an epoch."""
        return rows // self.effective_batch

    def order(self, shuffled: Ids, steps: Ids) -> Ids:
        """The sample ids of an epoch. shuffled: all of them, at random; steps: the numbers of the full steps, at random."""
        if self.given:
            return np.arange(len(shuffled), dtype=np.int64)
        if self.bands is not None:
            return shuffled[np.argsort(self.bands[shuffled], kind="stable")]
        if self.lengths is not None:
            return self._grouped(shuffled, steps, self.lengths)
        return shuffled

    def _grouped(self, shuffled: Ids, steps: Ids, lengths: Ids) -> Ids:
        size = self.effective_batch
        reach = size * _SORTED_STEPS
        near = np.arange(len(shuffled)) // reach
        # by stretch of the shuffle, then the longest first; what is equal stays as shuffled
        ordered = shuffled[np.lexsort((-lengths[shuffled], near))]
        full = len(steps) * size
        batches = ordered[:full].reshape(-1, size)[steps]
        if len(batches):
            # The step with the longest sample comes first: if it does not fit, that shows at once.
            first = int(lengths[batches].max(axis=1).argmax())
            batches[[0, first]] = batches[[first, 0]]
        return np.concatenate([batches.reshape(-1), ordered[full:]])


def arrangement(spec: RunSpec, data: Prepared) -> Arrangement:
    """Raises ValueError if the data have no order from easy to hard and one is wanted."""
    if spec.data.order == "given":
        return Arrangement(given=True)
    if spec.data.order == "curriculum":
        return Arrangement(bands=_bands(data))
    if spec.train.group_by_length:
        return Arrangement(lengths=lengths_of(data), effective_batch=spec.train.effective_batch)
    return Arrangement()


def lengths_of(data: Prepared) -> Ids:
    """int64 (samples,): tokens of each; of a pair, of both its rows."""
    offsets = np.frombuffer(data.offsets, dtype=np.int64)
    return np.diff(offsets[::2] if data.kind == PAIRS else offsets)


def _bands(data: Prepared) -> Ids:
    if data.easy is None:
        raise ValueError(f"{data.folder} holds no order from easy to hard")
    easy = np.frombuffer(data.easy, dtype=np.int64)
    bands = np.empty(len(easy), dtype=np.int64)
    bands[easy] = np.arange(len(easy)) * BANDS // max(1, len(easy))
    return bands
