"""TIES and DARE: the runs' products, made sparse, as one matrix that is computed by blocks of rows.

For adapters that were trained apart from one another, each from the base model. Runs that continue one another share most of
what they changed, which is what these rules take for conflict or chance.

TIES (Yadav et al., arXiv:2306.01708), for each module and with P_t = B_t A_t:
    trim   of each P_t only the `density` part with the largest |entries| stays
    elect  each entry's sign is that of the sum over t
    mean   over those t whose entry has that sign
DARE (Yu et al., arXiv:2311.03099): of each P_t an entry stays with probability `density`, divided by it; then the mean over t.

Both act on the products, not on the factors: signs and sizes of factors mean nothing by themselves. The price is that every
pass over a module multiplies all its factors anew, 2 x runs x r x outputs x inputs operations, and looks at every entry: five
passes for wide layers under TIES, three under DARE.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from backpropagate_runner.combine.low_rank import F32, Term

_TILE = 16  # rows that share one generator of random numbers, so that blocks of any size draw the same


def rows_of_a_block(inputs: int, runs: int, budget: int) -> int:
    """So many that all runs' products, and as much again to work with, take at most `budget` bytes."""
    return max(_TILE, budget // (4 * inputs * (2 * runs + 6)) // _TILE * _TILE)


def transposed(terms: Sequence[Term]) -> list[Term]:
    return [Term(term.coefficient, term.A.T, term.B.T) for term in terms]


@dataclass(frozen=True)
class Dare:
    """The mean of randomly thinned products. `label` and `seed` decide what is dropped."""

    terms: Sequence[Term]
    step: int
    density: float
    seed: int
    label: str

    @property
    def shape(self) -> tuple[int, int]:
        return _shape(self.terms)

    def block(self, start: int) -> F32:
        stop = min(start + self.step, self.shape[0])
        total = np.zeros((stop - start, self.shape[1]), np.float32)
        for number, term in enumerate(self.terms):
            product = _product(term, start, stop)
            for tile in range(start, stop, _TILE):
                rows = slice(tile - start, min(tile + _TILE, stop) - start)
                product[rows] *= self._kept(number, tile, product[rows].shape)
            total += product
        total /= np.float32(self.density * len(self.terms))
        return total

    def _kept(self, number: int, tile: int, shape: tuple[int, ...]) -> np.typing.NDArray[np.bool_]:
        key = hashlib.blake2b(f"{self.seed}/{self.label}/{number}/{tile}".encode(), digest_size=16).digest()
        generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
        return generator.random(shape, dtype=np.float32) < self.density


@dataclass(frozen=True)
class Ties:
    """The disjoint mean of trimmed products. `thresholds`: the smallest size that stays, of each term's entries."""

    terms: Sequence[Term]
    step: int
    thresholds: Sequence[float]

    @property
    def shape(self) -> tuple[int, int]:
        return _shape(self.terms)

    def block(self, start: int) -> F32:
        stop = min(start + self.step, self.shape[0])
        products = [_product(term, start, stop) for term in self.terms]
        for product, threshold in zip(products, self.thresholds, strict=True):
            product[np.abs(product) < threshold] = 0
        positive = sum(products[1:], start=products[0].copy()) >= 0
        total = np.zeros(positive.shape, np.float32)
        count = np.zeros(positive.shape, np.float32)
        for product in products:
            agrees = np.where(positive, product > 0, product < 0)
            count += agrees
            total += np.where(agrees, product, np.float32(0))
        total /= np.maximum(count, 1)
        return total


def thresholds(terms: Sequence[Term], step: int, density: float, tick: Callable[[], None]) -> list[float]:
    """Of each product the size that the `density` part of its entries reaches: exact, in two passes.

    The bits of positive floats are in the order of the floats: the first pass counts the upper halves of them, the second
    looks at the few entries whose upper half is the wanted one.
    """
    rows, columns = _shape(terms)
    wanted = max(1, int(density * rows * columns))
    found = []
    for term in terms:
        if wanted == rows * columns:
            found.append(0.0)
            continue
        counts = np.zeros(1 << 16, np.int64)
        for start in range(0, rows, step):
            upper = _sizes(term, start, min(start + step, rows)) >> np.uint32(16)
            counts += np.bincount(upper.reshape(-1), minlength=1 << 16)
            tick()
        at_least = counts[::-1].cumsum()[::-1]
        upper_half = int(np.nonzero(at_least >= wanted)[0][-1])
        still = wanted - int(at_least[upper_half] - counts[upper_half])
        near = []
        for start in range(0, rows, step):
            bits = _sizes(term, start, min(start + step, rows))
            near.append(bits[bits >> np.uint32(16) == upper_half])
            tick()
        entries = np.concatenate(near)
        found.append(float(np.partition(entries, len(entries) - still)[len(entries) - still].view(np.float32)))
    return found


def _sizes(term: Term, start: int, stop: int) -> np.typing.NDArray[np.uint32]:
    return np.abs(_product(term, start, stop)).view(np.uint32)


def _product(term: Term, start: int, stop: int) -> F32:
    product = term.B[start:stop] @ term.A
    if term.coefficient != 1:
        product *= np.float32(term.coefficient)
    return product


def _shape(terms: Sequence[Term]) -> tuple[int, int]:
    return terms[0].B.shape[0], terms[0].A.shape[1]
