"""The reference folder: small, whole or not there, and refused when it is not what its index says."""

from __future__ import annotations

import struct
from pathlib import Path

import msgspec
import pytest

from backpropagate_protocol.reference import (
    Answered,
    BadReference,
    Reference,
    ReferenceWriter,
    Rendered,
    read_reference,
    read_rows,
)

VOCABULARY = 5


def answered(name: str, rows: int) -> Answered:
    return Answered((("user", name),), f"<{name}>", (1, 2, 3), (4, 0), "four", (2.5, 1.0), True, 1, rows)


def rows(count: int, start: float) -> bytes:
    return struct.pack(f"<{count * VOCABULARY}f", *(start + at for at in range(count * VOCABULARY)))


def write(folder: Path) -> Reference:
    writer = ReferenceWriter(folder)
    writer.add(answered("one", 3), rows(3, 0.0))
    writer.add(answered("two", 2), rows(2, 100.0))
    rendered = (Rendered((("system", "s"),), None),)
    writer.commit(Reference(model="m", vocabulary=VOCABULARY, rendered=rendered, moment="2026-01-01T23:59:58"))
    writer.close()
    return read_reference(folder)


def test_each_prompt_gets_its_own_rows_back(tmp_path: Path) -> None:
    reference = write(tmp_path / "reference")
    one, two = reference.prompts
    assert (one.offset, two.offset) == (0, 3)
    assert read_rows(tmp_path / "reference", reference, one) == rows(3, 0.0)
    assert read_rows(tmp_path / "reference", reference, two) == rows(2, 100.0)
    assert msgspec.structs.replace(one, offset=0) == answered("one", 3)


def test_nothing_is_there_before_the_commit_nor_after_a_failure(tmp_path: Path) -> None:
    writer = ReferenceWriter(tmp_path / "reference")
    writer.add(answered("one", 1), rows(1, 0.0))
    assert not (tmp_path / "reference").exists()
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_an_older_reference_and_the_remains_of_a_killed_writer_are_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "reference"
    write(folder)
    killed = ReferenceWriter(folder)
    killed.add(answered("lost", 1), rows(1, 0.0))
    again = write(folder)
    assert [prompt.text for prompt in again.prompts] == ["<one>", "<two>"]
    assert [path.name for path in tmp_path.iterdir()] == ["reference"]
    killed.close()


def test_the_digest_is_that_of_the_content(tmp_path: Path) -> None:
    def made(name: str, start: float) -> tuple[int, str]:
        writer = ReferenceWriter(tmp_path / name)
        writer.add(answered("one", 1), rows(1, start))
        try:
            return writer.commit(Reference(model="m", vocabulary=VOCABULARY))
        finally:
            writer.close()

    assert made("a", 0.0) == made("b", 0.0)
    assert made("c", 1.0) != made("d", 0.0)


@pytest.mark.parametrize("damage", ["index", "cut", "longer", "gone", "schema"])
def test_what_is_not_whole_is_refused(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "reference"
    reference = write(folder)
    logits, index = folder / "logits.f32", folder / "reference.json"
    match damage:
        case "index":
            index.write_bytes(index.read_bytes()[:-1])
        case "cut":
            logits.write_bytes(logits.read_bytes()[:-4])
        case "longer":
            logits.write_bytes(logits.read_bytes() + b"0000")
        case "gone":
            logits.unlink()
        case "schema":
            index.write_bytes(msgspec.json.encode(msgspec.structs.replace(reference, schema=2)))
    with pytest.raises(BadReference):
        read_reference(folder)


def test_no_folder_is_no_reference(tmp_path: Path) -> None:
    with pytest.raises(BadReference, match="holds no reference"):
        read_reference(tmp_path / "nothing")
