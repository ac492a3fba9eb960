"""A data file as a stream of bytes: opened or refused, unpacked if it is gzip, counted and digested while it is read.

The digest is over the file as it lies on disk, all of it, however few of its rows were asked for.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, cast

from backpropagate_protocol.data_formats import KINDS, PACKED, accepted, may_be_hub_id, suffix
from backpropagate_protocol.errors import DatasetError, DatasetFormatError, DatasetNotFoundError, DatasetParseError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BUFFER = 1024 * 1024
MAX_ROW = 64 * 1024 * 1024  # bytes; whatever is longer is no row of text, and reading it whole would cost the memory

ACCEPTED = f"{accepted()} (each also as {PACKED}), or a hub id such as owner/name"


def is_hub_id(source: str) -> bool:
    """True for `owner/name` where no such file is here and the name does not end like a data file's."""
    path = Path(source)
    return not path.is_absolute() and may_be_hub_id(source) and not path.exists()


def needs_frameworks(source: str) -> bool:
    """True if reading it imports large packages: better done when nothing else is being imported."""
    return is_hub_id(source) or suffix(source) == ".parquet"


class _Digested(io.RawIOBase):
    """Passes a file's bytes on, and keeps count and digest of what passed."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self.hash = hashlib.sha256()
        self.passed = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        count = self._file.readinto(buffer) or 0
        self.hash.update(memoryview(buffer).cast("B")[:count])
        self.passed += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


class FileSource:
    """An open data file. Use it as a context manager; every fault of reading it is a coded DatasetError."""

    def __init__(self, source: str) -> None:
        self.path = Path(source)
        self.name = self.path.name
        self.size = _size_or_refusal(self.path)
        kind = KINDS.get(suffix(self.path.name))
        if kind is None:
            raise DatasetFormatError(f"{self.name} does not end like a data file; accepted: {ACCEPTED}")
        self.kind = kind
        with self.faults():
            self._raw = _Digested(io.FileIO(self.path, "rb"))
            raw: io.RawIOBase = self._raw
            self.disk = io.BufferedReader(raw, BUFFER)
            packed = self.disk.peek(2)[:2] == b"\x1f\x8b"
            self.stream = self.disk
            if packed:
                self.stream = io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=self.disk, mode="rb")), BUFFER)

    @property
    def packed(self) -> bool:
        return self.stream is not self.disk

    @property
    def done(self) -> int:
        """Bytes of the file read so far."""
        return self._raw.passed

    def digest(self, tick: Callable[[], None]) -> str:
        """SHA-256 of the whole file; reads what has not been read yet, which can be most of it."""
        with self.faults():
            while self.disk.read(BUFFER):
                tick()
        return self._raw.hash.hexdigest()

    @contextmanager
    def faults(self) -> Iterator[None]:
        """Turns what reading a damaged or vanished file raises into coded errors."""
        try:
            yield
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DatasetParseError(f"{self.name} is not a whole gzip file: {error}") from error
        except OSError as error:
            raise DatasetError(f"{self.path} cannot be read: {error.strerror or error}") from error

    def __enter__(self) -> FileSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.disk.close()


def _size_or_refusal(path: Path) -> int:
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DatasetNotFoundError(f"there is no file {path}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise DatasetError(f"{path!s} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if stat.S_ISDIR(status.st_mode):
        raise DatasetError(f"{path} is a folder; name the data file in it")
    if not stat.S_ISREG(status.st_mode):
        raise DatasetError(f"{path} is not a regular file; save the rows to a file first, since they are read twice")
    return status.st_size


def lines(source: FileSource) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines with their line ends, a byte order mark taken off; None for a line over MAX_ROW.

    Raises DatasetError if the file is UTF-16 or UTF-32, which only looks like text.
    """
    readline = source.stream.readline
    number = 0
    while line := readline(MAX_ROW):
        number += 1
        if number == 1:
            line = without_mark(line, source.name)
        if len(line) < MAX_ROW or line.endswith(b"\n"):
            yield number, line
            continue
        del line
        while (rest := readline(MAX_ROW)) and not rest.endswith(b"\n"):
            pass
        yield number, None


def without_mark(head: bytes, name: str) -> bytes:
    """The first bytes of a text without the UTF-8 mark; raises DatasetError for the mark of another encoding."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")):
        raise DatasetParseError(f"{name} is UTF-16 or UTF-32 text; save it as UTF-8")
    return head.removeprefix(b"\xef\xbb\xbf")
