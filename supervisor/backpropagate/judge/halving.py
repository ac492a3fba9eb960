"""Arithmetic of the micro-batch: it always divides the effective batch, so that a smaller one changes no sample."""

from __future__ import annotations


def largest_divisor(effective: int, at_most: int) -> int:
    """The largest divisor of `effective` that is not above `at_most` (and at least 1)."""
    return next(size for size in range(max(1, min(at_most, effective)), 0, -1) if effective % size == 0)


def halved(micro: int, effective: int) -> int | None:
    """The next smaller micro-batch: the largest divisor of `effective` that is at most half; None if it is 1 already."""
    return None if micro <= 1 else largest_divisor(effective, micro // 2)
