"""The rows of an opened source that a DataSpec names, one after the other: converted to Examples, or bad.

A row's position is its number among the file's rows, from 0, whatever is wrong with any of them and however few are asked
for. So windows of one file never overlap, and a row that is held out once is held out for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from backpropagate_protocol.data_formats import ORDERS
from backpropagate_protocol.errors import DatasetFormatError, InvalidSettingError
from backpropagate_protocol.spec import DataSpec
from backpropagate_runner.example import Example
from backpropagate_runner.formats import (
    ACCEPTED_COLUMNS,
    FORMATS,
    canonical,
    check_serves,
    columns_of,
    convert,
    detect,
)
from backpropagate_runner.readers import BadRow, RawRow, Source, read
from backpropagate_runner.turns import RowError

TRAIN, HELD_OUT = "train", "held-out"
_UNKNOWN_ENOUGH = 1000  # rows of unknown columns after which no other row is waited for


class GoodRow(msgspec.Struct, frozen=True):
    """A row that can be trained on. `wanted`: it is of the part that was asked for."""

    line: int
    position: int
    example: Example
    wanted: bool = True


def held_out(data: DataSpec, position: int) -> bool:
    """True for the last row of each `data.holdout` rows of the file."""
    return data.holdout > 0 and position % data.holdout == data.holdout - 1


def check_selection(data: DataSpec) -> None:
    """Raises InvalidSettingError for a choice of rows that means nothing."""
    if data.part not in (TRAIN, HELD_OUT):
        raise InvalidSettingError(f"there is no part of a data set called {data.part!r}; choose {TRAIN} or {HELD_OUT}")
    if data.order not in ORDERS:
        raise InvalidSettingError(f"there is no order called {data.order!r}; choose {', '.join(ORDERS)}")
    if data.start < 0 or data.holdout < 0 or data.holdout == 1:
        raise InvalidSettingError(
            f"start must be at least 0, not {data.start}; holdout 0 or at least 2, not {data.holdout}"
        )
    if any(portion.take < 0 or portion.start < 0 for portion in data.replay):
        raise InvalidSettingError("a portion that is mixed in cannot begin before row 0, nor have fewer than no rows")


class Examples:
    """Of the rows data.start … data.start + data.samples - 1, those of data.part. `each` is called at every row read.
    both: good rows of the other part come, too, and are not `wanted`.

    `format` is known from the first known row of the file, so that it is the same for every window of it.
    """

    def __init__(
        self,
        source: Source,
        data: DataSpec,
        format: str = "auto",
        each: Callable[[], None] = lambda: None,
        *,
        both: bool = False,
    ) -> None:
        self._source, self._data, self._each, self._both = source, data, each, both
        self._end = None if data.samples is None else data.start + data.samples
        self.format = _wanted(format if format != "auto" else data.format, source)
        if self.format:
            check_serves(self.format, data.method, source.name)
        self._unknown = 0
        self._unknown_columns = ""

    def __iter__(self) -> Iterator[GoodRow | BadRow]:
        data = self._data
        for position, row in enumerate(read(self._source)):
            if self._end is not None and position >= self._end:
                break
            self._each()
            if not self.format and not isinstance(row, BadRow):
                self.format = detect(row.value, data.method) or ""
                if not self.format:
                    self._unknown += 1
                    self._unknown_columns = self._unknown_columns or columns_of(row.value)
                else:
                    check_serves(self.format, data.method, self._source.name)
            if position >= data.start:
                yield from self._of_part(position, row)
            if not self.format and self._unknown == _UNKNOWN_ENOUGH:
                break
        if not self.format and self._unknown:
            raise DatasetFormatError(
                f"{self._source.name} has the columns {self._unknown_columns}; accepted: {ACCEPTED_COLUMNS}"
            )

    def _of_part(self, position: int, row: RawRow | BadRow) -> Iterator[GoodRow | BadRow]:
        if held_out(self._data, position) == (self._data.part == HELD_OUT):
            yield self._made(position, row) if not isinstance(row, BadRow) else row
        elif self._both and not isinstance(row, BadRow):
            other = self._made(position, row)
            if isinstance(other, GoodRow):
                yield msgspec.structs.replace(other, wanted=False)

    def _made(self, position: int, row: RawRow) -> GoodRow | BadRow:
        if not self.format:
            return BadRow(row.line, f"has the columns {columns_of(row.value)}, which fit no format", parse=False)
        try:
            return GoodRow(row.line, position, convert(self.format, row.value, self._data.method))
        except RowError as error:
            return BadRow(row.line, str(error), parse=False)


def _wanted(format: str, source: Source) -> str:
    if format == "auto":
        return "raw" if source.kind == "text" else ""
    name = canonical(format)
    if name is None:
        raise InvalidSettingError(f"there is no data format called {format!r}; choose auto, {', '.join(FORMATS)}")
    return name
