"""Reads a data set from end to end before anything is loaded: what it is, how many rows, which of them are bad and why.

Needs no framework (parquet files and hub ids excepted), so it can run while the frameworks are still being imported.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import assert_never

import msgspec

from backpropagate_protocol.errors import (
    DatasetError,
    DatasetFormatError,
    DatasetParseError,
    DatasetValidationError,
    InvalidSettingError,
)
from backpropagate_protocol.jobs import ValidateJob
from backpropagate_protocol.messages import DataReport
from backpropagate_protocol.redact import redact
from backpropagate_protocol.spec import DataSpec
from backpropagate_runner import sources
from backpropagate_runner.formats import (
    ACCEPTED_COLUMNS,
    FORMATS,
    Chat,
    Completion,
    Example,
    Text,
    canonical,
    columns_of,
    convert,
    detect,
)
from backpropagate_runner.readers import BadRow, Source, open_source, read
from backpropagate_runner.turns import RowError

PhaseReport = Callable[[int, int, str], None]  # done, total, detail
MAX_ERRORS = 10
_UNKNOWN_ENOUGH = 1000  # rows of unknown columns after which no other row is waited for


class GoodRow(msgspec.Struct, frozen=True):
    """A row that can be trained on."""

    line: int
    example: Example


@dataclass(frozen=True, slots=True)
class Scan:
    """What one pass over a data set found. `rows` are the good ones; `errors` the first few of the `bad` ones."""

    format: str
    rows: int
    bad: int
    errors: tuple[str, ...]
    counts: dict[str, int] = field(default_factory=dict)
    source_digest: str = ""
    notices: tuple[str, ...] = ()


class Ticker:
    """Passes progress on at most twice a second, however often it is told."""

    def __init__(self, phase: PhaseReport) -> None:
        self._phase = phase
        self._next = 0.0

    def __call__(self, done: int, total: int, detail: str) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + 0.5
            self._phase(done, total, detail)


def needs_frameworks(data: DataSpec) -> bool:
    """True if reading this data imports large packages: wait for the frameworks' own import first."""
    return sources.needs_frameworks(data.source)


class Examples:
    """The rows of an opened source, one after the other: converted, or bad. `format` is known from the first known row."""

    def __init__(self, source: Source, data: DataSpec, format: str = "auto") -> None:
        self._source = source
        self._samples = data.samples
        self.format = _wanted(format if format != "auto" else data.format, source)
        self._unknown = 0
        self._unknown_columns = ""

    def __iter__(self) -> Iterator[GoodRow | BadRow]:
        for seen, row in enumerate(read(self._source)):
            if self._samples is not None and seen >= self._samples:
                break
            if isinstance(row, BadRow):
                yield row
                continue
            if not self.format:
                self.format = detect(row.value) or ""
            if not self.format:
                yield BadRow(row.line, f"has the columns {columns_of(row.value)}, which fit no format", parse=False)
                self._unknown += 1
                self._unknown_columns = self._unknown_columns or columns_of(row.value)
                if self._unknown == _UNKNOWN_ENOUGH:
                    break
                continue
            try:
                yield GoodRow(row.line, convert(self.format, row.value))
            except RowError as error:
                yield BadRow(row.line, str(error), parse=False)
        if not self.format and self._unknown:
            raise DatasetFormatError(
                f"{self._source.name} has the columns {self._unknown_columns}; accepted: {ACCEPTED_COLUMNS}"
            )


def _wanted(format: str, source: Source) -> str:
    if format == "auto":
        return "raw" if source.kind == "text" else ""
    name = canonical(format)
    if name is None:
        raise InvalidSettingError(f"there is no data format called {format!r}; choose auto, {', '.join(FORMATS)}")
    return name


def _nothing(done: int, total: int, detail: str) -> None:
    return


def scan(data: DataSpec, phase: PhaseReport = _nothing, *, max_errors: int = MAX_ERRORS, lenient: bool = False) -> Scan:
    """One pass over all rows (or the first `data.samples`). `phase` is told bytes read and bytes in all.

    Raises a coded DatasetError if there is nothing to train on: no such file, no rows, an unknown shape, and (unless
    data.on_bad_row is skip) bad rows, the first ten of them with line and reason. `lenient` reports bad rows instead.
    """
    tick = Ticker(phase)
    counts: Counter[str] = Counter()
    errors: list[str] = []
    rows = bad = unparsed = 0
    with open_source(data) as source:
        unit = "row" if source.kind in ("parquet", "hub") else "line"
        examples = Examples(source, data)
        for row in examples:
            if isinstance(row, GoodRow):
                rows += 1
                _count(row.example, counts)
            else:
                bad += 1
                unparsed += row.parse
                if len(errors) < max_errors:
                    errors.append(f"{unit} {row.line}: {row.reason}")
            tick(source.done, source.size, source.name)
        digest = source.digest(lambda: tick(source.done, source.size, source.name))
    if rows + bad == 0:
        raise DatasetError(f"{source.name} has no rows")
    if bad and not lenient and (rows == 0 or data.on_bad_row != "skip"):
        raise bad_rows(source.name, rows, bad, errors, parse=unparsed > 0)
    phase(rows + bad, rows + bad, f"{rows} rows")
    notices = _notices(source.name, examples.format, bad, counts)
    return Scan(examples.format, rows, bad, tuple(errors), dict(counts), digest, notices)


def bad_rows(name: str, rows: int, bad: int, errors: list[str], *, parse: bool) -> DatasetError:
    """The error for rows that cannot be used."""
    kind = DatasetParseError if parse else DatasetValidationError
    if rows:
        some = f"{bad} of {rows + bad} rows cannot be used"
    else:
        some = "its only row cannot be used" if bad == 1 else f"none of its {bad} rows can be used"
    more = [f"… and {bad - len(errors)} more"] if bad > len(errors) else []
    suggestion = None if rows else "Repair the rows; docs/data.md shows one row of every accepted format."
    return kind("\n  ".join([f"{name}: {some}", *errors, *more]), suggestion=suggestion)


def _count(example: Example, counts: Counter[str]) -> None:
    if isinstance(example, Chat):
        counts["chat"] += 1
        counts["turns"] += len(example.messages)
        if example.tools:
            counts["with_tools"] += 1
        if example.dropped:
            counts["unanswered"] += 1
    elif isinstance(example, Completion):
        counts["completion"] += 1
    elif isinstance(example, Text):
        counts["text"] += 1
    else:
        assert_never(example)


def _notices(name: str, format: str, bad: int, counts: Counter[str]) -> tuple[str, ...]:
    found = []
    if format == "preference":
        found.append(f"{name}: only prompt and chosen answer of each row are trained on; the rejected one is left out")
    if bad:
        found.append(f"{name}: bad rows left out: {bad}")
    if counts["unanswered"]:
        found.append(f"{name}: rows whose turns after the last answer are left out: {counts['unanswered']}")
    return tuple(found)


def report(job: ValidateJob, phase: PhaseReport = _nothing) -> DataReport:
    """What `backprop validate` shows. Bad rows are reported, not raised; a data set that cannot be read at all raises."""
    found = scan(job.data, phase, max_errors=job.max_errors, lenient=True)
    errors = tuple(redact(error) for error in found.errors)
    return DataReport(found.format or "unknown", found.rows, found.bad, errors, found.counts)
