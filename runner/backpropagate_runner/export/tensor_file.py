"""A safetensors file, read through a memory map: its table of contents, and single rows of its tensors.

The map is of the file, so what is read through it is the page cache's memory, which the system takes back when it needs
it; nothing here allocates a tensor.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from backpropagate_runner.export.float_bits import STORED

_MAX_HEADER = 100 << 20  # safetensors' own bound


class BadTensorFile(Exception):
    """A file is no safetensors file, or not a whole one; the message says what is wrong with it, not which file it is."""


class _Entry(msgspec.Struct, frozen=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a file. `shape` is rows first; a scalar is one row."""

    file: TensorFile
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int  # in the file

    @property
    def rows(self) -> int:
        return self.shape[0] if self.shape else 1

    @property
    def row_size(self) -> int:
        """Elements in a row."""
        return prod(self.shape[1:])

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * STORED[self.dtype].itemsize

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[np.generic]:
        """Rows start … stop-1 as they are stored, two-dimensional; a view of the file, not to be written to."""
        stop = self.rows if stop is None else stop
        kind = STORED[self.dtype]
        size = self.row_size
        count = (stop - start) * size
        if not count:
            return np.empty((stop - start, size), kind)
        at = self.offset + start * size * kind.itemsize
        return np.frombuffer(self.file.map, kind, count, at).reshape(stop - start, size)


class TensorFile:
    """Raises BadTensorFile, or OSError if it cannot be opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(_MAX_HEADER, size - 8):
                raise BadTensorFile(f"it ends inside its header ({size} bytes)")
            header = file.read(length)
        try:
            raw = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
            self.metadata = msgspec.json.decode(raw.pop("__metadata__", b"{}"), type=dict[str, str])
            entries = {name: msgspec.json.decode(value, type=_Entry) for name, value in raw.items()}
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise BadTensorFile(f"its header cannot be read: {error}") from error
        self.tensors = {name: self._checked(name, entry, 8 + length, size) for name, entry in entries.items()}

    @cached_property
    def map(self) -> mmap.mmap:
        with open(self.path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def _checked(self, name: str, entry: _Entry, data: int, size: int) -> StoredTensor:
        begin, end = entry.data_offsets
        if entry.dtype not in STORED:
            raise BadTensorFile(f"{name} has the element type {entry.dtype}, which is not known here")
        tensor = StoredTensor(self, name, entry.dtype, entry.shape, data + begin)
        if begin < 0 or min(entry.shape, default=1) < 0 or end - begin != tensor.bytes:
            raise BadTensorFile(f"its header contradicts itself about {name}")
        if data + end > size:
            raise BadTensorFile(
                f"it has {size} bytes of at least {data + end}: it was not written or fetched to its end"
            )
        return tensor


def header_of(tensors: Sequence[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """The first bytes of a file that holds these tensors (name, dtype, shape) one after the other."""
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, dtype, shape in tensors:
        end = at + prod(shape) * STORED[dtype].itemsize
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": (at, end)}
        at = end
    encoded = msgspec.json.encode(table)
    encoded += b" " * (-len(encoded) % 8)  # the data begins where any element type is aligned
    return len(encoded).to_bytes(8, "little") + encoded
