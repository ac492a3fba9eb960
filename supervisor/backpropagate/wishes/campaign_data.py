"""Which rows each run of a campaign trains on, and which earlier ones it sees again: from the number of rows alone. Pure.

Positions count the rows of a file from 0, bad ones too. Of a window, every `holdout`-th row of the file is held out: it is
neither trained on nor replayed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from backpropagate_protocol.errors import DatasetError, InvalidSettingError
from backpropagate_protocol.spec import DataSpec, Portion

LEAST_WITH_HELD_OUT = 5  # rows of a run of which one may be held out without being asked for


@dataclass(frozen=True, slots=True)
class Window:
    """Rows start … start+size-1 of a file."""

    start: int
    size: int

    def held_out(self, holdout: int) -> int:
        """How many of them: those at the positions holdout-1, 2·holdout-1, …"""
        return (self.start + self.size) // holdout - self.start // holdout if holdout else 0

    def trained(self, holdout: int) -> int:
        return self.size - self.held_out(holdout)


def cut(rows: int, runs: int, samples: int) -> list[Window]:
    """One file for several runs: `samples` rows each; of a shorter file each gets the same number, the first one more."""
    if rows >= runs * samples:
        return [Window(run * samples, samples) for run in range(runs)]
    share, more = divmod(rows, runs)
    windows, start = [], 0
    for run in range(runs):
        size = share + (run < more)
        windows.append(Window(start, size))
        start += size
    return windows


def chosen_holdout(wished: int, windows: Sequence[Window], *, explicit: bool) -> int:
    """Every how many-th row is held out, so that every run has at least one; 0: none is.

    Raises InvalidSettingError where what was said holds out nothing of a run, or everything.
    """
    smallest = min(window.size for window in windows)
    if wished == 1:
        raise InvalidSettingError(
            "--holdout 1 would hold out every row", suggestion="Give 2 or more; 20 is usual, and 0 holds out none."
        )
    if wished == 0 or all(window.held_out(wished) for window in windows):
        return wished
    if explicit:
        raise InvalidSettingError(
            f"--holdout {wished} holds out no row of a run that has {smallest} rows",
            suggestion=f"Give at most {smallest}, or 0 for no evaluation." if smallest >= 2 else "Give 0.",
        )
    return smallest if smallest >= LEAST_WITH_HELD_OUT else 0


def replayed(
    earlier: Sequence[DataSpec], windows: Sequence[Window], new: int, ratio: float, seed: int
) -> tuple[Portion, ...]:
    """Rows of each earlier run, so many that they are `ratio` of what the run sees together with its `new` own ones.

    The same number of each; what an earlier run has too few of comes from the others. A run never sees a row twice for it.
    """
    there = [window.trained(data.holdout) for data, window in zip(earlier, windows, strict=True)]
    shares = evenly(round(ratio / (1 - ratio) * new), there)
    return tuple(
        Portion(
            source=data.source,
            split=data.split,
            format=data.format,
            start=window.start,
            stop=window.start + window.size,
            take=take,
            seed=seed,
        )
        for data, window, take in zip(earlier, windows, shares, strict=True)
        if take
    )


def evenly(wanted: int, there: Sequence[int]) -> list[int]:
    """`wanted` of what is `there`, the same number of each as far as it goes; the newest get what does not divide."""
    shares, left = [0] * len(there), wanted
    for place, index in enumerate(sorted(range(len(there)), key=lambda index: there[index])):
        shares[index] = min(there[index], left // (len(there) - place))
        left -= shares[index]
    return shares


def task_names(data: Sequence[DataSpec], windows: Sequence[Window], taken: Sequence[str] = ()) -> tuple[str, ...]:
    """What the runs' tasks are called in tables and plots: the file's name, and the rows where it is cut; none twice."""
    names: list[str] = []
    for each, window in zip(data, windows, strict=True):
        name = stem(each.source)
        if each.samples is not None:
            name = f"{name} {window.start + 1}-{window.start + window.size}"
        before = {*taken, *names}
        fresh, number = name, 2
        while fresh in before:
            fresh, number = f"{name} ({number})", number + 1
        names.append(fresh)
    return tuple(names)


def stem(source: str) -> str:
    """`/data/week-2.jsonl.gz` → `week-2`; a hub id keeps its last part."""
    name = Path(source).name if Path(source).is_absolute() else source.rpartition("/")[2]
    return re.sub(r"\.(jsonl|ndjson|jsonlines|json|csv|tsv|parquet|txt|md)(\.gz)?$", "", name) or name


def enough(rows: int, runs: int, source: str) -> None:
    """Raises DatasetError for a file that has not even a row for each run."""
    if rows < runs:
        raise DatasetError(
            f"{source} has {rows} {'row' if rows == 1 else 'rows'}, too few for {runs} runs",
            suggestion=f"Give --runs {rows} or fewer, or more data." if rows else "Give a file with rows.",
        )


def one_each(files: int, runs: int) -> None:
    """Raises InvalidSettingError where another number of runs was asked for than there are files."""
    if files != runs:
        raise InvalidSettingError(
            f"{files} data files are {files} runs, and --runs says {runs}",
            suggestion=f"Leave --runs out, or give one file, which is then cut into {runs} runs.",
        )


def with_window(data: DataSpec, window: Window, holdout: int, *, whole: bool) -> DataSpec:
    return msgspec.structs.replace(
        data, start=window.start, samples=None if whole else window.size, holdout=holdout, replay=()
    )
