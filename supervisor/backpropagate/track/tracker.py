"""The contract of a tracker, and the run that it is told of. One file beside this one for each that there is.

A tracker runs in a process of its own (attend.py) and may raise whatever its library raises: the process then ends, and is
started again later. No call may ask the user anything; its standard input is not a terminal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec

from backpropagate.track.telling import Ended, Fact, Note, Values
from backpropagate_protocol.redact import redact
from backpropagate_protocol.rundir import RunDir
from backpropagate_protocol.spec import RunSpec

# What is of no use to those who compare runs, or is said elsewhere.
_LEFT_OUT = ("schema", "run_id", "faults", "output", "report_to", "report_offline", "project", "safety", "verbose")


class Tracker(Protocol):
    """Gets what is new of one run; made once for each process, and again for the same run after a resume.

    whole: it was begun anew, and wants all of the run, whatever was told before. kept: why the run is kept on this machine,
    though it was to be sent; else nothing.
    """

    whole: bool
    kept: str

    def values(self, point: Values) -> None: ...

    def note(self, note: Note, *, new: bool) -> None:
        """Every line of the run, in order; not `new`: this tracker was told of it before this process began."""

    def facts(self, facts: Mapping[str, Fact]) -> None: ...

    def flush(self) -> None:
        """Returns when what was told so far will outlive this process."""

    def close(self, ended: Ended | None) -> None:
        """The end of one supervisor; None: it was killed."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The run that a tracker is told of."""

    spec: RunSpec
    run_dir: RunDir

    @property
    def name(self) -> str:
        """As the tracker shows it: the user's label, or the run id."""
        return self.spec.name or self.spec.run_id

    @property
    def unique_name(self) -> str:
        """For trackers that know a run by its name alone."""
        return f"{self.spec.name}-{self.spec.run_id[:8]}" if self.spec.name else self.spec.run_id

    @property
    def settings(self) -> dict[str, Fact]:
        """By dotted name, `train.learning_rate`; without secrets. A list is one text."""
        fields: dict[str, object] = msgspec.to_builtins(self.spec)
        return dict(_flat("", {name: value for name, value in fields.items() if name not in _LEFT_OUT}))


def _flat(prefix: str, fields: Mapping[str, object]) -> list[tuple[str, Fact]]:
    found: list[tuple[str, Fact]] = []
    for name, value in fields.items():
        if isinstance(value, dict):
            found += _flat(f"{prefix}{name}.", value)
        elif isinstance(value, list | tuple):
            found.append((prefix + name, redact(", ".join(map(str, value)))))
        elif isinstance(value, bool):
            found.append((prefix + name, str(value).lower()))
        elif isinstance(value, int | float):
            found.append((prefix + name, value))
        elif value is not None:
            found.append((prefix + name, redact(str(value))))
    return found


def open_tracker(name: str, subject: Subject) -> Tracker:
    """Imports what it needs. Raises what its library raises."""
    match name:
        case "tensorboard":
            from backpropagate.track.to_tensorboard import TensorBoard

            return TensorBoard(subject)
        case "wandb":
            from backpropagate.track.to_wandb import WeightsAndBiases

            return WeightsAndBiases(subject)
        case "mlflow":
            from backpropagate.track.to_mlflow import MLflow

            return MLflow(subject)
        case "trackio":
            from backpropagate.track.to_trackio import Trackio

            return Trackio(subject)
        case _:
            raise ValueError(f"there is no tracker called {name!r}")
