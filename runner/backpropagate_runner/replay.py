"""Earlier rows that are mixed into new ones: which of a portion's rows are taken, the same ones every time."""

from __future__ import annotations

from array import array
from random import Random

import msgspec

from backpropagate_protocol.spec import DataSpec, Portion
from backpropagate_runner.examples import TRAIN


def data_of(portion: Portion, data: DataSpec) -> DataSpec:
    """The portion as data of their own, treated and held out like `data`, into which they are mixed."""
    return msgspec.structs.replace(
        data,
        source=portion.source,
        split=portion.split,
        format=portion.format,
        start=portion.start,
        samples=None if portion.stop is None else max(0, portion.stop - portion.start),
        part=TRAIN,
        replay=(),
    )


class Choice:
    """`take` of the positions that are offered, each with the same chance; all of them if there are no more.

    One pass, memory for what is taken (Algorithm R of Vitter, ACM TOMS 11, 1985).
    """

    def __init__(self, take: int, seed: int) -> None:
        self._take = take
        self._random = Random(f"replay/{seed}").random  # the one draw that Python promises never to change
        self._offered = 0
        self._kept = array("q")

    def offer(self, position: int) -> None:
        self._offered += 1
        if len(self._kept) < self._take:
            self._kept.append(position)
            return
        at = int(self._random() * self._offered)
        if at < self._take:
            self._kept[at] = position

    def positions(self) -> array[int]:
        """Ascending."""
        return array("q", sorted(self._kept))
