"""Rows out of data files: one reader for each kind, each a stream with the row's line number, none trusting the bytes.

A row that cannot be parsed is yielded as BadRow and reading goes on; where it cannot go on (a JSON array broken in the
middle), a coded error is raised, so that the rest of a file is never left out in silence. Memory is bounded by the
longest row.
"""

from __future__ import annotations

import csv
import hashlib
import importlib
import json
import tempfile
from collections.abc import Callable, Iterator
from types import TracebackType

import msgspec

from backpropagate_protocol.errors import DatasetError, DatasetNotFoundError, DatasetParseError, DependencyError
from backpropagate_protocol.hub import is_hub_trouble
from backpropagate_protocol.spec import DataSpec
from backpropagate_runner.json_values import json_values
from backpropagate_runner.sources import MAX_ROW, FileSource, is_hub_id, lines, without_mark
from backpropagate_runner.turns import described

_CHUNK = 256 * 1024


class RawRow(msgspec.Struct, frozen=True):
    """One row as it stands in the file. `line` is where it begins (1-based); the row's number where there are no lines."""

    line: int
    value: dict[str, object]


class BadRow(msgspec.Struct, frozen=True):
    """A row that cannot be used, and why. `parse`: it could not even be read, as opposed to not fitting the format."""

    line: int
    reason: str
    parse: bool = True


Rows = Iterator[RawRow | BadRow]


class HubSource:
    """A data set of the hub, streamed by `datasets`. Its digest is over the rows that were read."""

    kind = "hub"
    size = 0  # unknown

    def __init__(self, data: DataSpec) -> None:
        self.name = data.source
        self.done = 0
        self._split = data.split
        self._hash = hashlib.sha256(f"{data.source}\n{data.split}\n".encode())

    def rows(self) -> Rows:
        datasets = _package("datasets")
        try:
            for number, value in enumerate(datasets.load_dataset(self.name, split=self._split, streaming=True), 1):
                self._hash.update(msgspec.json.encode(value, enc_hook=repr))
                yield RawRow(number, dict(value))
        except Exception as error:
            raise _hub_error(self.name, error, bool(datasets.config.HF_HUB_OFFLINE)) from error

    def digest(self, tick: Callable[[], None]) -> str:
        return self._hash.hexdigest()

    def __enter__(self) -> HubSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None


def _hub_error(name: str, error: Exception, offline: bool) -> DatasetError:
    if is_hub_trouble(error) and not offline:
        return DatasetError(
            f"the data set {name} cannot be streamed: the hub does not answer", code="DEP_HUB_UNREACHABLE"
        )
    if isinstance(error, (FileNotFoundError, ConnectionError)):
        return DatasetNotFoundError(f"the hub has no data set {name}, or may not be asked: {error}")
    return DatasetError(f"the data set {name} cannot be streamed: {error}")


Source = FileSource | HubSource


def open_source(data: DataSpec) -> Source:
    """Raises DatasetNotFoundError, DatasetFormatError or DatasetError if there is nothing that could be read."""
    if is_hub_id(data.source):
        return HubSource(data)
    return FileSource(data.source)


def read(source: Source) -> Rows:
    """All rows of an opened source."""
    if isinstance(source, HubSource):
        yield from source.rows()
        return
    reader = {"jsonl": _jsonl, "json": _json, "csv": _csv, "text": _blocks, "parquet": _parquet}[source.kind]
    with source.faults():
        yield from reader(source)


# --- JSON -------------------------------------------------------------------------------------------------------------


def _jsonl(source: FileSource) -> Rows:
    if _first_character(source) == "[":
        yield from _json(source)
        return
    for number, line in lines(source):
        if line is None:
            yield BadRow(number, f"the line is longer than {MAX_ROW >> 20} MiB")
        elif not line.isspace():
            yield _parsed(number, line)


def _parsed(number: int, line: bytes) -> RawRow | BadRow:
    try:
        value = msgspec.json.decode(line)
    except (ValueError, RecursionError):
        # The standard library is slower, but reads NaN, which other tools write, and says where a fault is.
        try:
            value = json.loads(line.decode("utf-8").rstrip("\r\n"))
        except UnicodeDecodeError as error:
            return BadRow(number, f"is not UTF-8 (byte {error.start + 1} of the line)")
        except json.JSONDecodeError as error:
            return BadRow(number, f"is not JSON: {error.msg} (character {error.pos + 1})")
        except ValueError as error:
            return BadRow(number, f"is not JSON that can be read: {error}")
        except RecursionError:
            return BadRow(number, "is nested too deeply")
    return _row(number, value)


def _row(number: int, value: object) -> RawRow | BadRow:
    if isinstance(value, dict):
        return RawRow(number, value)
    return BadRow(number, f"a row must be an object with named fields, not {described(value)}")


def _json(source: FileSource) -> Rows:
    """`.json`: an array of rows; or, as many tools write it, one object after the other."""
    for line, value in json_values(source, array=_first_character(source) == "["):
        yield _row(line, value)


def _first_character(source: FileSource) -> str:
    head = without_mark(source.stream.peek(), source.name).lstrip()
    return head[:1].decode("ascii", "replace")


# --- CSV, text, parquet -------------------------------------------------------------------------------------------------


def _csv(source: FileSource) -> Rows:
    csv.field_size_limit(MAX_ROW // 4)  # the module holds four bytes for each character
    bad_encoding = 0

    def texts() -> Iterator[str]:
        nonlocal bad_encoding
        for number, line in lines(source):
            if line is None:
                raise DatasetParseError(f"{source.name}, line {number}: is longer than {MAX_ROW >> 20} MiB")
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError:
                bad_encoding = number
                yield line.decode("utf-8", "replace")

    first_line = source.stream.peek().partition(b"\n")[0]
    delimiter = max((",", ";", "\t"), key=lambda mark: first_line.count(mark.encode()))
    reader = csv.reader(texts(), strict=True, delimiter=delimiter)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            if header is None:
                raise DatasetParseError(f"{source.name}, line {line}: the header is not CSV: {error}") from error
            yield BadRow(line, f"is not CSV: {error}")
            continue
        if fields is None:
            return
        if bad_encoding >= line:
            if header is None:
                raise DatasetParseError(f"{source.name}, line {bad_encoding}: the header is not UTF-8")
            yield BadRow(bad_encoding, "is not UTF-8")
        elif not fields:
            continue
        elif header is None:
            header = [name.strip() for name in fields]
        elif len(fields) != len(header):
            yield BadRow(line, f"has {len(fields)} fields, and the header has {len(header)}")
        else:
            yield RawRow(line, dict(zip(header, fields, strict=True)))


def _blocks(source: FileSource) -> Rows:
    """Plain text: each block between blank lines is a row."""
    block: list[bytes] = []
    start = size = 0
    for number, line in lines(source):
        if line is None or size + len(line) > MAX_ROW:
            raise DatasetParseError(f"{source.name}, line {number}: a paragraph is longer than {MAX_ROW >> 20} MiB")
        if not line.isspace():
            if not block:
                start = number
            block.append(line)
            size += len(line)
        elif block:
            yield _block(start, block)
            block, size = [], 0
    if block:
        yield _block(start, block)


def _block(start: int, block: list[bytes]) -> RawRow | BadRow:
    try:
        return RawRow(start, {"text": b"".join(block).decode("utf-8").replace("\r\n", "\n").rstrip("\r\n")})
    except UnicodeDecodeError as error:
        return BadRow(start + error.object.count(b"\n", 0, error.start), "is not UTF-8")


def _parquet(source: FileSource) -> Rows:
    pyarrow = _package("pyarrow")
    parquet = _package("pyarrow.parquet")
    with tempfile.TemporaryFile() as spool:  # a packed file cannot be sought in
        if source.packed:
            while data := source.stream.read(_CHUNK):
                spool.write(data)
            spool.seek(0)
        try:
            number = 0
            with parquet.ParquetFile(spool if source.packed else source.path) as table:
                for batch in table.iter_batches(batch_size=256):
                    for value in batch.to_pylist():
                        number += 1
                        yield RawRow(number, value)
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:
            raise DatasetParseError(f"{source.name} is not a parquet file that can be read: {error}") from error


def _package(name: str):  # type: ignore[no-untyped-def]  # noqa: ANN202 - packages without types
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DependencyError(f"reading this data needs the package {name.partition('.')[0]}") from error
