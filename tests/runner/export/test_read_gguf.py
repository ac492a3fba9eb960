"""A GGUF's header: what it says is held against the file, and what cannot be is damage, with a code."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from gguf import GGML_QUANT_SIZES

from backpropagate_protocol.errors import GGUFExportError
from backpropagate_runner.export.read_gguf import TYPES, GgufFile

UINT32, STRING = 4, 8


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def tensor(name: str, kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack("<IQIQ", 1, 8, kind, offset)


def written(path: Path, *tensors: bytes, alignment: tuple[int, bytes] = (UINT32, struct.pack("<I", 32))) -> Path:
    kind, value = alignment
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 1)
    header += text("general.alignment") + struct.pack("<I", kind) + value + b"".join(tensors)
    path.write_bytes(header + bytes(-len(header) % 32) + bytes(64))
    return path


def test_a_sound_header_is_read(tmp_path: Path) -> None:
    file = GgufFile(written(tmp_path / "a.gguf", tensor("one"), tensor("two", offset=32)))
    assert [(info.name, info.type, info.bytes) for info in file.tensors.values()] == [
        ("one", "F32", 32),
        ("two", "F32", 32),
    ]


@pytest.mark.parametrize("alignment", [(UINT32, struct.pack("<I", 0)), (STRING, text("32"))])
def test_an_alignment_that_is_none_is_damage(tmp_path: Path, alignment: tuple[int, bytes]) -> None:
    with pytest.raises(GGUFExportError, match=r"damaged: its alignment is"):
        GgufFile(written(tmp_path / "a.gguf", tensor("one"), alignment=alignment))


def test_two_tensors_of_one_name_are_damage(tmp_path: Path) -> None:
    with pytest.raises(GGUFExportError, match=r"damaged: it holds one twice"):
        GgufFile(written(tmp_path / "a.gguf", tensor("one"), tensor("one", offset=32)))


def test_an_unknown_type_is_damage(tmp_path: Path) -> None:
    with pytest.raises(GGUFExportError, match=r"damaged: one has a type that is not known \(4\)"):
        GgufFile(written(tmp_path / "a.gguf", tensor("one", kind=4)))


def test_the_table_of_types_is_that_of_the_gguf_package() -> None:
    assert {int(kind): (kind.name, *size) for kind, size in GGML_QUANT_SIZES.items()} == TYPES
