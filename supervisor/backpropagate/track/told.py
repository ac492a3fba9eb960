"""What one tracker has been told of a run already: a small file in the run directory, so that a resume says nothing twice.

The journal is read anew from its beginning whenever a tracker's process starts, and what is on record here is passed over.
It is written after the tracker has taken it: what a killed process had not noted is told twice rather than never.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from filelock import FileLock

from backpropagate.track.telling import Values
from backpropagate_protocol import durable


class Told(msgspec.Struct, kw_only=True):
    """steps: of each curve, the newest step. notes: how many lines. problem: why the last process gave up. kept: why the run is
    kept on this machine, though it was to be sent."""

    steps: dict[str, int] = {}
    notes: int = 0
    problem: str = ""
    kept: str = ""

    def fresh(self, point: Values) -> Values:
        """The part of it that is new, and from now on is not. The first telling of a step stays."""
        new = {name: value for name, value in point.values.items() if point.step > self.steps.get(name, -1)}
        self.steps.update(dict.fromkeys(new, point.step))
        return Values(point.step, point.time, new)


@contextmanager
def held(path: Path, seconds: float) -> Iterator[None]:
    """One process at a time: that of a killed supervisor has this long to finish. Raises Timeout of filelock."""
    path.parent.mkdir(exist_ok=True)
    with FileLock(path.with_name(f".{path.stem}.lock"), timeout=seconds):
        yield


def load(path: Path) -> Told:
    """Nothing where there is no such file, or none that can be read: then all of it is told again."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Told)
    except (OSError, msgspec.DecodeError):
        return Told()


def save(path: Path, told: Told) -> None:
    """Raises OSError if the disk does not take it."""
    durable.write_file(path, msgspec.json.encode(told))
