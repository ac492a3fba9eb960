"""Prepared data sets: what was added comes back, a crash leaves no data set, other data is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backpropagate_protocol.jobs import PreparedRef
from backpropagate_protocol.prepared import (
    ABOUT,
    ROWS,
    TOKENS,
    TRAINED,
    Prepared,
    PreparedManifest,
    PreparedWriter,
    open_prepared,
    read_manifest,
)

Row = tuple[list[int], list[int]]
_rows = st.lists(
    st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 1)), max_size=9).map(
        lambda pairs: ([token for token, _ in pairs], [flag for _, flag in pairs])
    ),
    max_size=6,
)


def write(folder: Path, rows: list[Row]) -> PreparedManifest:
    writer = PreparedWriter(folder)
    for ids, flags in rows:
        writer.add(ids, flags)
    return writer.commit(key="k", skipped=1, truncated=2, format="messages", source_digest="s")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(_rows)
def test_every_row_comes_back_as_it_was_added(tmp_path_factory: pytest.TempPathFactory, rows: list[Row]) -> None:
    folder = tmp_path_factory.mktemp("prepared") / "set"
    manifest = write(folder, rows)
    prepared = Prepared(folder)

    assert len(prepared) == len(rows)
    for index, (ids, flags) in enumerate(rows):
        tokens, trained = prepared.row(index)
        assert (list(tokens), list(trained)) == (ids, flags)
    assert (manifest.tokens, manifest.trained_tokens) == (sum(len(i) for i, _ in rows), sum(sum(f) for _, f in rows))


def test_the_same_rows_have_the_same_digest_and_other_rows_another(tmp_path: Path) -> None:
    first = write(tmp_path / "a", [([1, 2], [0, 1]), ([3], [1])])
    assert write(tmp_path / "b", [([1, 2], [0, 1]), ([3], [1])]).digest == first.digest
    others = ([([1, 2, 3], [0, 1, 1])], [([1, 2], [0, 0]), ([3], [1])], [([1], [0]), ([2, 3], [1, 1])])
    for n, rows in enumerate(others):
        assert write(tmp_path / f"c{n}", rows).digest != first.digest


def test_a_writer_that_never_commits_leaves_no_data_set(tmp_path: Path) -> None:
    writer = PreparedWriter(tmp_path / "set")
    writer.add([1], [1])
    assert not (tmp_path / "set").exists()
    writer.abandon()
    assert list(tmp_path.iterdir()) == []


def test_two_writers_of_the_same_set_both_succeed(tmp_path: Path) -> None:
    first, second = PreparedWriter(tmp_path / "set"), PreparedWriter(tmp_path / "set")
    for writer in (first, second):
        writer.add([1, 2], [0, 1])
    made = [w.commit(key="k", skipped=0, truncated=0, format="text", source_digest="s") for w in (first, second)]
    assert made[0] == made[1] == read_manifest(tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_flags_of_another_length_than_the_tokens_are_refused(tmp_path: Path) -> None:
    writer = PreparedWriter(tmp_path / "set")
    with pytest.raises(ValueError, match="2 tokens and 1 flags"):
        writer.add([1, 2], [1])
    writer.abandon()


@pytest.mark.parametrize("name", [TOKENS, TRAINED, ROWS])
def test_a_file_of_another_size_is_seen_when_it_is_opened(tmp_path: Path, name: str) -> None:
    write(tmp_path / "set", [([1, 2], [0, 1])])
    (tmp_path / "set" / name).write_bytes(b"")
    with pytest.raises(ValueError, match="wrong size"):
        Prepared(tmp_path / "set")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"{}"])
def test_a_manifest_that_cannot_be_read_is_no_data_set(tmp_path: Path, content: bytes) -> None:
    write(tmp_path / "set", [([1], [1])])
    (tmp_path / "set" / ABOUT).write_bytes(content)
    with pytest.raises(ValueError, match="holds no prepared data"):
        read_manifest(tmp_path / "set")


def test_a_folder_that_is_not_there_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no prepared data"):
        read_manifest(tmp_path / "nothing")


def test_a_run_that_began_with_other_data_is_refused(tmp_path: Path) -> None:
    manifest = write(tmp_path / "set", [([1], [1])])
    assert len(open_prepared(PreparedRef(path=str(tmp_path / "set"), digest=manifest.digest))) == 1
    with pytest.raises(ValueError, match="other data"):
        open_prepared(PreparedRef(path=str(tmp_path / "set"), digest="0" * 64))
