"""Whether an export holds what the adapter changed: how much of the change is found, whatever rounding lies over it.

Rounding to 4 bits moves each number by more than a fine-tune does, but in no direction; the adapter's change has one. So
what is found is projected onto it: 1 is all of the change, 0 is the base without its adapter, 2 a scale that is twice too
large. What rounding leaves of this falls with the number of elements, and is measured along with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from backpropagate_protocol.measured import Check

_TINY = 1e-8  # a tensor of zeros has no relative error
_WHOLE = 0.2  # how far from 1 the change of all tensors together may be
_EACH = 0.4  # and that of one tensor: coarse types shrink what they round, and some tensors are small
_SURE = 5.0  # standard deviations of what rounding leaves
_BLIND = 0.8  # where that is more, present and absent cannot be told apart

Numbers = NDArray[np.float64]


@dataclass(slots=True)
class Compared:
    """One tensor, piece by piece: before the training, as it has to be, and as it was found."""

    difference: float = 0.0
    size: float = 0.0
    count: int = 0
    change: float = 0.0
    found: float = 0.0
    noise: float = 0.0

    def add(self, before: Numbers, expected: Numbers, found: Numbers) -> None:
        change, rest = expected - before, found - expected
        self.difference += float((rest**2).sum())
        self.size += float((expected**2).sum())
        self.count += expected.size
        self.change += float((change**2).sum())
        self.found += float(((found - before) * change).sum())
        self.noise += float(((rest * change) ** 2).sum())

    @property
    def error(self) -> float:
        """Relative, RMS."""
        return math.sqrt(self.difference) / max(math.sqrt(self.size), _TINY)

    @property
    def mean_size(self) -> float:
        """Root mean square of the numbers that it has to have."""
        return math.sqrt(self.size / self.count) if self.count else 0.0


@dataclass
class Changes:
    """Takes one changed tensor after the other, then judges."""

    _whole: Compared = field(default_factory=Compared)
    _tensors: int = 0
    _worst: float = 0.0
    _farthest: str = ""

    def add(self, name: str, one: Compared) -> None:
        self._tensors += 1
        self._whole.change += one.change
        self._whole.found += one.found
        self._whole.noise += one.noise
        share, doubt = _share(one)
        if doubt < _BLIND and not abs(share - 1) - doubt <= max(_EACH, self._worst):
            self._worst = abs(share - 1) - doubt
            self._farthest = f"; {name} holds {share:.2f} of its own"

    def checks(self) -> list[Check]:
        """None where there is no adapter, or one that changes nothing."""
        if not self._whole.change:
            return []
        share, doubt = _share(self._whole)
        if doubt >= _BLIND:
            detail = f"the adapter changes too little to be told from rounding, in {self._tensors} tensors"
            return [Check("adapter", True, None, None, detail)]
        passed = abs(share - 1) <= _WHOLE + doubt and not self._farthest
        detail = f"of what the adapter changes is found, in {self._tensors} tensors{self._farthest}"
        return [Check("adapter", passed, share, 1 - _WHOLE - doubt, detail)]


def _share(one: Compared) -> tuple[float, float]:
    """How much of the change is found, and how much of that may be rounding's."""
    if not one.change:
        return 1.0, math.inf
    return one.found / one.change, _SURE * math.sqrt(one.noise) / one.change
