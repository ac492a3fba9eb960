"""In which order an epoch takes the samples, where the user wished for another than a shuffle.

Every backend asks here, so that a wish means the same on all of them, in every attempt, whatever the micro-batch.
"""

from __future__ import annotations

from array import array
from random import Random

from backpropagate_protocol.prepared import Prepared

RANDOM, CURRICULUM, GIVEN = "random", "curriculum", "given"
ORDERS = (RANDOM, CURRICULUM, GIVEN)
CHUNKS = 10


def epoch_order(data: Prepared, order: str, seed: int, epoch: int) -> array[int] | None:
    """int64 (samples,): the sample ids of the epoch (from 0) in order; None: the backend's own shuffle.

    given: as they are numbered, in every epoch. curriculum: in the first epoch from easy to hard, in ten chunks of which each
    is shuffled in itself; after it all have been seen, and the epochs that follow are shuffled like any.
    """
    if order == GIVEN:
        return array("q", range(len(data)))
    if order != CURRICULUM or epoch > 0:
        return None
    if data.easy is None:
        raise ValueError(f"{data.folder} was prepared without an order from easy to hard")
    draw = Random(f"curriculum/{seed}").random  # the one draw that Python promises never to change
    size = max(1, -(-len(data) // CHUNKS))
    found = array("q")
    for start in range(0, len(data), size):
        chunk = data.easy[start : start + size].tolist()
        found.extend(sorted(chunk, key=lambda _: draw()))
    return found
