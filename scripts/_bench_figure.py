"""One row of a bench's table, and the words for what several measurements come to."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import psutil


@dataclass(frozen=True)
class Figure:
    """`met` is None where there is no goal: the figure is told, for what it is."""

    what: str
    value: str
    goal: str = ""
    met: bool | None = None

    def row(self) -> str:
        verdict = {None: "told", True: "met", False: "**short**"}[self.met]
        return f"| {self.what} | {self.value} | {self.goal} | {verdict} |"


HEAD = "| what | measured | goal | |\n|---|---|---|---|"


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def spread(ratios: Sequence[float]) -> str:
    """Of the ratios of pairs: how far the one that counts can be trusted."""
    return f"{statistics.median(ratios):.3f} (median of {len(ratios)} pairs, {min(ratios):.3f} to {max(ratios):.3f})"


def milliseconds(values: Sequence[float]) -> str:
    middle, high, top = (1000 * v for v in (statistics.median(values), percentile(values, 0.99), max(values)))
    return f"p99 {high:.0f} ms (median {middle:.0f}, most {top:.0f}, of {len(values)})"


def machine(when: str) -> str:
    """What was measured on; `when` the load was looked at."""
    memory = psutil.virtual_memory().total / 2**30
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB, Python "
        f"{platform.python_version()}; load {load:.1f} {when}, {datetime.now(UTC):%Y-%m-%d}"
    )
