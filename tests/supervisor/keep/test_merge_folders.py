"""A merge is believed as far as its digests reach."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest

from backpropagate.keep.merge_folders import readable, whole
from backpropagate_protocol.combined import COMBINED, Combined


@pytest.fixture
def merge(tmp_path: Path) -> Path:
    """A merge with one file in each of its adapters."""
    files = {}
    for part in ("merged", "next"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "weights").write_bytes(part.encode())
        files[f"{part}/weights"] = hashlib.sha256(part.encode()).hexdigest()
    about = Combined(
        link=1,
        rule="slao",
        coefficient=1,
        floor=0,
        weight=0,
        density=0,
        seed=0,
        runs=(),
        state="",
        files=files,
        numpy="",
    )
    (tmp_path / COMBINED).write_bytes(msgspec.json.encode(about))
    return tmp_path


def test_a_merge_as_it_was_written_is_whole(merge: Path) -> None:
    assert readable(merge)
    assert whole(merge, "merged")
    assert whole(merge, "next")


def test_a_part_that_changed_is_not_whole_and_says_nothing_of_the_other(merge: Path) -> None:
    (merge / "next" / "weights").write_bytes(b"nexT")
    assert not whole(merge, "next")
    assert whole(merge, "merged")


def test_a_part_that_is_gone_or_was_never_written_is_not_whole(merge: Path) -> None:
    (merge / "next" / "weights").unlink()
    assert not whole(merge, "next")
    assert not whole(merge, "nothing")


def test_a_merge_whose_record_is_torn_or_gone_is_not_believed(merge: Path) -> None:
    record = merge / COMBINED
    record.write_bytes(record.read_bytes()[:50])
    assert not readable(merge)
    assert not whole(merge, "merged")
    record.unlink()
    assert not readable(merge)
    assert not whole(merge, "merged")
