"""When a resume says that its files are others now: only where that is so, and where it goes on with the rows that it has."""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path

import msgspec
import pytest

from backpropagate.drive.changed_data import warning
from backpropagate.judge.start import Start
from backpropagate.keep.record import iso
from backpropagate_protocol.jobs import PreparedRef
from backpropagate_protocol.prepared import ABOUT
from backpropagate_protocol.spec import Portion, RunSpec
from tests.supervisor.keep.test_history import spec

OLD = b"these rows\n"
DIGEST = hashlib.sha256(OLD).hexdigest()


def begun(folder: Path, source: str, digest: str = DIGEST) -> tuple[RunSpec, Start]:
    """A run of that source, which was created long before the files of the test were, and its prepared rows."""
    (folder / "key").mkdir(exist_ok=True)
    (folder / "key" / ABOUT).touch()
    one = spec(folder, "a")
    data = msgspec.structs.replace(one.data, source=source)
    one = msgspec.structs.replace(one, created="2026-01-01T00:00:00Z", data=data)
    return one, Start(8, prepared=PreparedRef(str(folder / "key"), "d"), source_digest=digest)


@pytest.mark.parametrize("content", [OLD, b"these rows\nand one more\n"])
def test_a_file_of_other_bytes_is_told_of_and_one_that_was_only_touched_is_not(tmp_path: Path, content: bytes) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(content)
    said = warning(*begun(tmp_path, str(rows)))
    assert said is None if content == OLD else (said or "").startswith("rows.jsonl was changed since this run began")


def test_a_file_that_nobody_touched_is_not_read(tmp_path: Path) -> None:
    """Its digest would be another. Windows has no time that a copy cannot keep: there it is read."""
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(b"not what was digested\n")
    one, start = begun(tmp_path, str(rows))
    later = msgspec.structs.replace(one, created=iso(time.time() + 3600))
    assert (warning(later, start) is None) is (sys.platform != "win32")


def test_rows_that_are_mixed_in_are_looked_at_too(tmp_path: Path) -> None:
    rows, earlier = tmp_path / "rows.jsonl", tmp_path / "earlier.jsonl"
    rows.write_bytes(OLD)
    earlier.write_bytes(OLD)
    digest = hashlib.sha256(f"{DIGEST}\n{DIGEST}".encode()).hexdigest()
    one, start = begun(tmp_path, str(rows), digest)
    data = msgspec.structs.replace(one.data, replay=(Portion(source=str(earlier), take=1),))
    mixed = msgspec.structs.replace(one, data=data)
    assert warning(mixed, start) is None
    earlier.write_bytes(b"others\n")
    assert (warning(mixed, start) or "").startswith("rows.jsonl, earlier.jsonl were changed")


def test_where_nobody_can_know_nothing_is_said(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(b"others\n")
    one, start = begun(tmp_path, str(rows))
    (tmp_path / "key" / ABOUT).unlink()
    assert warning(one, start) is None  # the child reads the file, and refuses it
    assert warning(one, Start(8)) is None
    for source in ("owner/name", str(tmp_path), str(tmp_path / "gone.jsonl")):
        assert warning(*begun(tmp_path, source)) is None
