"""The order of samples without torch: the same permutations that `torch.randperm` draws, so that every backend agrees on it.

A run that is moved from one backend to another as a fresh run with the same seed reads the same rows in the same steps.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from backpropagate_backends.arrangement import STEPS_SEED, Arrangement
from backpropagate_protocol.errors import DatasetError

_MOST = (2**32 - 1) // 20  # above, torch draws 64 bits for each place


def permutation(rows: int, seed: int) -> NDArray[np.int64]:
    """int64 (rows,): what `torch.randperm(rows, generator=torch.Generator().manual_seed(seed))` gives. Raises DatasetError for
    too many rows."""
    if rows >= _MOST:
        raise DatasetError(
            f"{rows} rows are more than can be put into an order here", suggestion=f"Train on fewer than {_MOST} rows."
        )
    order = list(range(rows))
    bits = np.random.MT19937()
    bits._legacy_seeding(seed & 0xFFFFFFFF)  # as every other Mersenne twister is seeded
    draws = bits.random_raw(max(1, rows - 1)) % np.arange(max(2, rows), 1, -1, dtype=np.uint64)
    for place, step in enumerate(draws[: rows - 1].tolist() if rows else ()):
        order[place], order[place + step] = order[place + step], order[place]
    return np.array(order, dtype=np.int64)


class EpochOrders:
    """The order of each epoch, the newest one kept: as the torch backends have it, whatever it is arranged by."""

    def __init__(self, rows: int, seed: int, arranged: Arrangement | None = None) -> None:
        self._rows, self._seed = rows, seed
        self._arranged = arranged or Arrangement()
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def take(self, epoch: int, start: int, count: int) -> NDArray[np.int64]:
        """The sample ids at places start … start+count-1 of the epoch; fewer where it ends."""
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._of(self._seed + epoch)
        return self._order[start : start + count]

    def _of(self, seed: int) -> NDArray[np.int64]:
        shuffled = permutation(self._rows, seed)
        if self._arranged.plain:
            return shuffled
        return self._arranged.order(shuffled, permutation(self._arranged.steps(self._rows), seed + STEPS_SEED))
