"""The second pass over a data set: the rows that the first one kept, one by one, those that are mixed in after the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from backpropagate_protocol.errors import DatasetError
from backpropagate_protocol.spec import DataSpec
from backpropagate_runner.example import Example
from backpropagate_runner.examples import Examples, GoodRow
from backpropagate_runner.readers import open_source
from backpropagate_runner.replay import data_of
from backpropagate_runner.validate import Scan


class KeptRow(msgspec.Struct, frozen=True):
    """A row that stays, as far as can be known without tokens. `source`: the name of its file."""

    source: str
    line: int
    example: Example


def kept_rows(data: DataSpec, scan: Scan, told: Callable[[], None]) -> Iterator[KeptRow]:
    """Raises DatasetError if a file is no longer what `scan` saw."""
    yield from _of_source(data, scan, told)
    for portion, found in zip(data.replay, scan.portions, strict=True):
        yield from _of_source(data_of(portion, data), found, told)


def _of_source(data: DataSpec, found: Scan, told: Callable[[], None]) -> Iterator[KeptRow]:
    if found.chosen is not None and not found.chosen:
        return
    left_out = iter(found.left_out)
    unwanted = next(left_out, None)
    chosen = None if found.chosen is None else iter(found.chosen)
    wanted = None if chosen is None else next(chosen, None)
    with open_source(data) as source:
        for row in Examples(source, data, found.format, told):
            if not isinstance(row, GoodRow):
                continue
            if row.position == unwanted:
                unwanted = next(left_out, None)
                continue
            if chosen is not None:
                if row.position != wanted:
                    continue
                wanted = next(chosen, None)
            yield KeptRow(source.name, row.line, row.example)
        if source.digest(told) != found.source_digest:
            raise DatasetError(f"{source.name} was changed while it was read; start again")
