"""Arithmetic of the micro-batch: it always divides the effective batch, so that a smaller one changes no sample."""

from __future__ import annotations

# KTO tells good answers from bad ones among rows that go through the model together: TRL's takes no single row either.
_LEAST = {"kto": 2}


def least_batch(method: str) -> int:
    """The smallest micro-batch that a method is trained with."""
    return _LEAST.get(method, 1)


def largest_divisor(effective: int, at_most: int, least: int = 1) -> int:
    """The largest divisor of `effective` that is not above `at_most`; where that is below `least`, the smallest that is not."""
    found = next(size for size in range(max(1, min(at_most, effective)), 0, -1) if effective % size == 0)
    if found >= least:
        return found
    return next((size for size in range(least, effective) if effective % size == 0), effective)


def halved(micro: int, effective: int, least: int = 1) -> int | None:
    """The next smaller micro-batch: the largest divisor of `effective` that is at most half; where that is below `least`, the
    largest that is still smaller; None if there is none."""
    if micro <= 1:
        return None
    found = largest_divisor(effective, micro // 2)
    if found >= least:
        return found
    return next((size for size in range(micro - 1, least - 1, -1) if effective % size == 0), None)
