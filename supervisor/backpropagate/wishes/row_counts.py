"""How many rows a data set has: asked of a child, which reads and checks all of them without a framework."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from backpropagate_protocol.errors import DatasetError, DatasetParseError, DatasetValidationError, error_for
from backpropagate_protocol.jobs import ValidateJob
from backpropagate_protocol.messages import DataReport
from backpropagate_protocol.spec import DataSpec

Counter = Callable[[DataSpec], int]  # raises a coded error for data that cannot be trained on


def counted_by_child(python: str | None) -> Counter:
    """A counter for the main thread of a process that has no event loop of its own: a command's."""
    from backpropagate.doors.oneshot import run_job

    def count(data: DataSpec) -> int:
        report = run_job(ValidateJob(data=every_row(data)), DataReport, backend="none", runner_python=python)
        return usable(data, report.rows, report.bad, report.errors, parse=report.unparsed > 0)

    return count


class _Refusal(msgspec.Struct):
    code: str
    message: str
    suggestion: str | None = None


class _Answer(msgspec.Struct):
    """Of `backprop validate --json`: a report, or an error without one."""

    rows: int | None = None
    bad: int = 0
    errors: tuple[str, ...] = ()
    error: _Refusal | None = None


def counted_by_command(python: str | None) -> Counter:
    """A counter for any thread, and beside a running event loop: `backprop validate`, as a process."""
    from backpropagate.doors.launch import answered

    def count(data: DataSpec) -> int:
        every = every_row(data)
        command = ["validate", "--json", "--format", every.format]
        command += ["--split", every.split] if not Path(every.source).exists() else []  # a file has none
        command += ["--samples", str(every.samples)] if every.samples is not None else []
        command += ["--runner-python", python] if python is not None else []
        said = answered([*command, "--", every.source])
        try:
            answer = msgspec.json.decode(said, type=_Answer)
        except msgspec.DecodeError as error:
            raise DatasetError(f"{data.source} could not be checked") from error
        if answer.rows is None:
            refused = answer.error
            raise error_for(refused.code, refused.message, suggestion=refused.suggestion) if refused else DatasetError(f"{data.source} could not be checked")  # fmt: skip
        parse = answer.error is not None and answer.error.code == DatasetParseError.default_code
        return usable(data, answer.rows, answer.bad, answer.errors, parse=parse)

    return count


def every_row(data: DataSpec) -> DataSpec:
    """The same file, without what leaves rows of it out by their position."""
    return msgspec.structs.replace(data, start=0, holdout=0, part="train", replay=())


def usable(data: DataSpec, rows: int, bad: int, errors: Sequence[str], *, parse: bool = False) -> int:
    """The number of rows, bad ones too: that is how positions in a file are counted. `parse`: some cannot even be read.

    Raises for bad rows that nobody said should be left out: better now than in the run that meets them.
    """
    if bad and (rows == 0 or data.on_bad_row != "skip"):
        kind = DatasetParseError if parse else DatasetValidationError
        more = [f"… and {bad - len(errors)} more"] if bad > len(errors) else []
        raise kind("\n  ".join([f"{data.source}: {bad} of {rows + bad} rows cannot be used", *errors, *more]))
    return rows + bad
