"""Rows of the history as text for other programs. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import msgspec
import orjson

from backpropagate.keep.record import RunRow


def as_lines(rows: Sequence[RunRow]) -> str:
    """One JSON object a line."""
    return "".join(orjson.dumps(row, default=msgspec.to_builtins).decode() + "\n" for row in rows)


def as_csv(rows: Sequence[RunRow]) -> str:
    """A header and a line for each row; what is not there is empty, and what is nested is JSON."""
    names = RunRow.__struct_fields__
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        plain = msgspec.to_builtins(row)
        writer.writerow([_cell(plain[name]) for name in names])
    return text.getvalue()


def _cell(value: object) -> object:
    if value is None:
        return ""
    return orjson.dumps(value).decode() if isinstance(value, list | dict | bool) else value
