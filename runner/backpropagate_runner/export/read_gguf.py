"""Reads a GGUF file: its metadata, and its tensors row by row as float32, without holding any of them.

The header is read once, field by field; a vocabulary of 150,000 tokens is then a list of strings and nothing more. Every
number that says where something lies is held against the size of the file before it is believed.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backpropagate_protocol.errors import DependencyError, GGUFExportError

Scalar = int | float | bool | str
Value = Scalar | list[Scalar]

_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

# By the number that stands for a type: its name, and how many elements are kept together in how many bytes.
TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """`shape` as numpy has it, rows first; `offset` from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type: str  # F32, F16, BF16, Q8_0, Q4_K, …
    offset: int
    bytes: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        """A one-dimensional tensor is one row."""
        return math.prod(self.shape[:-1])


class GgufFile:
    """Raises GGUFExportError if the file is not whole, or not GGUF; OSError if it cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size
        self.fields: dict[str, Value] = {}
        self.tensors: dict[str, TensorInfo] = {}
        try:
            with open(path, "rb") as file:
                self._read(_Reader(file.read, self.size))
        except (struct.error, UnicodeDecodeError, EOFError, KeyError) as error:
            raise GGUFExportError(f"{path.name} is damaged: {error or 'it ends too early'}") from error

    @property
    def architecture(self) -> str:
        return str(self.fields.get("general.architecture", ""))

    @cached_property
    def template(self) -> str | None:
        found = self.fields.get("tokenizer.chat_template")
        return found if isinstance(found, str) else None

    def number(self, key: str) -> float | None:
        """A field of this architecture: `number("rope.freq_base")`."""
        found = self.fields.get(f"{self.architecture}.{key}")
        return float(found) if isinstance(found, (int, float)) else None

    def token(self, key: str) -> str:
        """The text of the token whose id the field holds; empty if there is none."""
        found = self.fields.get(key)
        tokens = self.fields.get("tokenizer.ggml.tokens")
        if isinstance(found, int) and isinstance(tokens, list) and 0 <= found < len(tokens):
            return str(tokens[found])
        return ""

    def texts(self, key: str) -> list[str]:
        found = self.fields.get(key)
        return [str(entry) for entry in found] if isinstance(found, list) else []

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows start … stop-1, dequantised; shape (stop-start, length of a row)."""
        try:
            from gguf import GGMLQuantizationType, quants
        except ImportError as error:
            raise DependencyError(
                "the gguf package is not installed, which reads the numbers in a GGUF",
                code="DEP_EXPORT_TOOL_MISSING",
                suggestion="pip install gguf (it comes with 'backpropagate[cpu]' and [cuda]).",
            ) from error
        info = self.tensors[name]
        row_bytes = info.bytes // info.rows
        with open(self.path, "rb") as file:
            file.seek(info.offset + start * row_bytes)
            data = np.frombuffer(file.read((stop - start) * row_bytes), np.uint8).reshape(stop - start, row_bytes)
        values: NDArray[np.float32] = quants.dequantize(data, GGMLQuantizationType[info.type])
        return values

    def chunks(self, name: str, elements: int) -> Iterator[tuple[int, int]]:
        """(start, stop) of rows, so that no piece has many more than `elements`."""
        info = self.tensors[name]
        step = max(1, elements // max(1, info.shape[-1]))
        for start in range(0, info.rows, step):
            yield start, min(info.rows, start + step)

    def _read(self, reader: _Reader) -> None:
        if reader.take(4) != _MAGIC:
            raise GGUFExportError(f"{self.path.name} is not a GGUF file")
        version = reader.number("I")
        if version not in (2, 3):
            raise GGUFExportError(f"{self.path.name} is GGUF of version {version}, which is not known here")
        tensors, fields = reader.number("Q"), reader.number("Q")
        for _ in range(fields):
            key = reader.text()
            self.fields[key] = reader.value(reader.number("I"))
        infos = [self._info(reader) for _ in range(tensors)]
        alignment = self.fields.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0:
            raise GGUFExportError(f"{self.path.name} is damaged: its alignment is {alignment}")
        begin = -(-reader.at // alignment) * alignment
        for info in infos:
            end = begin + info.offset + info.bytes
            if end > self.size:
                raise GGUFExportError(
                    f"{self.path.name} is damaged: {info.name} ends at byte {end} of a file of {self.size}"
                )
            if info.name in self.tensors:
                raise GGUFExportError(f"{self.path.name} is damaged: it holds {info.name} twice")
            self.tensors[info.name] = TensorInfo(info.name, info.shape, info.type, begin + info.offset, info.bytes)

    def _info(self, reader: _Reader) -> TensorInfo:
        name = reader.text()
        shape = tuple(reversed([reader.number("Q") for _ in range(reader.number("I"))]))
        number = reader.number("I")
        if number not in TYPES:
            raise GGUFExportError(f"{self.path.name} is damaged: {name} has a type that is not known ({number})")
        kind, block, size = TYPES[number]
        if math.prod(shape) <= 0:
            raise GGUFExportError(f"{self.path.name} is damaged: {name} has the shape {shape}")
        return TensorInfo(name, shape, kind, reader.number("Q"), math.prod(shape) // block * size)


class _Reader:
    """The header's fields in order; `at` is where the next one begins."""

    def __init__(self, read: Callable[[int], bytes], size: int) -> None:
        self._read, self._size = read, size
        self.at = 0

    def take(self, count: int) -> bytes:
        if count > self._size - self.at:
            raise EOFError
        data = self._read(count)
        if len(data) != count:
            raise EOFError
        self.at += count
        return data

    def number(self, code: str) -> int:
        (found,) = struct.unpack(f"<{code}", self.take(struct.calcsize(code)))
        return int(found)

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "surrogateescape")

    def value(self, kind: int) -> Value:
        if kind == _ARRAY:
            inner, count = self.number("I"), self.number("Q")
            if inner == _STRING:
                return [self.text() for _ in range(count)]
            code = _SCALARS[inner]
            return list(struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize(code))))
        if kind == _STRING:
            return self.text()
        code = _SCALARS[kind]
        (found,) = struct.unpack(f"<{code}", self.take(struct.calcsize(code)))
        assert isinstance(found, (int, float))
        return found
