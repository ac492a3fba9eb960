"""Prepared data sets: what was added comes back, a crash leaves no data set, other data is refused."""

from __future__ import annotations

from array import array
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backpropagate_protocol.durable import Disk
from backpropagate_protocol.jobs import PreparedRef
from backpropagate_protocol.prepared import (
    ABOUT,
    EASY,
    LABELLED,
    LABELS,
    PAIRS,
    ROWS,
    TOKENS,
    TRAINED,
    Prepared,
    PreparedManifest,
    PreparedWriter,
    open_prepared,
    read_manifest,
    verify,
)
from backpropagate_protocol.rundir import PARTIAL

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


class Overtaken(Disk):
    """Another writer finishes each time just before this one puts something aside."""

    def __init__(self, others: list[PreparedWriter]) -> None:
        self._others = others

    def rename(self, source: Path, target: Path) -> None:
        if self._others and target.name.endswith(f".old{PARTIAL}"):
            committed(self._others.pop())
        super().rename(source, target)


def test_a_damaged_set_that_another_writer_replaces_first_is_left_to_it(tmp_path: Path) -> None:
    writers = [PreparedWriter(tmp_path / "set") for _ in range(2)]
    last = PreparedWriter(tmp_path / "set", Overtaken(writers))
    for writer in (*writers, last):
        writer.add([1, 2], [0, 1])
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / ABOUT).write_text("torn")
    assert committed(last) == verify(tmp_path / "set")
    assert len(writers) == 1
    writers.pop().abandon()
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_writers_that_finish_at_once_over_a_damaged_set_all_have_it(tmp_path: Path) -> None:
    for round in range(20):
        folder = tmp_path / f"set{round}"
        write(folder, [([1, 2], [0, 1])])
        (folder / TOKENS).write_bytes(b"12345678")
        writers = [PreparedWriter(folder) for _ in range(4)]
        for writer in writers:
            writer.add([1, 2], [0, 1])
        with ThreadPoolExecutor(len(writers)) as threads:
            assert len({manifest.digest for manifest in threads.map(committed, writers)}) == 1
        assert verify(folder).rows == 1
    assert len(list(tmp_path.iterdir())) == 20


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


def committed(writer: PreparedWriter, easy: array[int] | None = None) -> PreparedManifest:
    dropped = {"duplicate": 2}
    return writer.commit(
        key="k", skipped=2, truncated=0, format="preference", source_digest="s", dropped=dropped, easy=easy
    )


def test_pairs_are_two_rows_of_one_sample(tmp_path: Path) -> None:
    writer = PreparedWriter(tmp_path / "set", kind=PAIRS)
    writer.add_pair(([1, 2, 3], [0, 0, 1]), ([1, 2, 4, 5], [0, 0, 1, 1]))
    writer.add_pair(([7, 8], [0, 1]), ([7, 9], [0, 1]))
    manifest = committed(writer)
    prepared = open_prepared(PreparedRef(str(tmp_path / "set"), verify(tmp_path / "set").digest))

    assert (len(prepared), manifest.rows, manifest.tokens, manifest.trained_tokens) == (2, 2, 11, 5)
    chosen, rejected = prepared.pair(0)
    assert [list(part) for part in (*chosen, *rejected)] == [[1, 2, 3], [0, 0, 1], [1, 2, 4, 5], [0, 0, 1, 1]]
    assert [list(ids) for ids, _ in prepared.pair(1)] == [[7, 8], [7, 9]]
    assert [prepared.length(index) for index in range(2)] == [7, 4]
    assert manifest.dropped == {"duplicate": 2}
    with pytest.raises(TypeError, match="these are pairs"):
        prepared.row(0)
    with pytest.raises(TypeError, match="without labels"):
        prepared.label(0)


def test_labelled_rows_keep_their_labels_and_a_damaged_label_is_seen(tmp_path: Path) -> None:
    writer = PreparedWriter(tmp_path / "set", kind=LABELLED)
    writer.add_labelled([1, 2], [0, 1], True)
    writer.add_labelled([3, 4, 5], [0, 1, 1], False)
    committed(writer)
    prepared = Prepared(tmp_path / "set")

    assert [prepared.label(index) for index in range(len(prepared))] == [True, False]
    assert list(prepared.row(1)[0]) == [3, 4, 5]
    assert prepared.length(1) == 3
    with pytest.raises(TypeError, match="not pairs"):
        prepared.pair(0)
    (tmp_path / "set" / LABELS).write_bytes(bytes((1, 1)))
    with pytest.raises(ValueError, match="other content"):
        verify(tmp_path / "set")


def test_the_order_of_a_curriculum_is_part_of_the_set(tmp_path: Path) -> None:
    writer, plain = PreparedWriter(tmp_path / "easy"), PreparedWriter(tmp_path / "plain")
    for one in (writer, plain):
        one.add([1, 2], [1, 1])
        one.add([3], [1])
    assert committed(writer, array("q", [1, 0])).digest != committed(plain).digest
    easy = Prepared(tmp_path / "easy").easy
    assert easy is not None
    assert list(easy) == [1, 0]
    assert Prepared(tmp_path / "plain").easy is None
    (tmp_path / "easy" / EASY).unlink()
    with pytest.raises(ValueError, match="holds no prepared data"):
        read_manifest(tmp_path / "easy")


def test_pairs_with_the_same_rows_as_a_plain_set_are_another_set(tmp_path: Path) -> None:
    pairs, plain = PreparedWriter(tmp_path / "pairs", kind=PAIRS), PreparedWriter(tmp_path / "plain")
    pairs.add_pair(([1, 2], [0, 1]), ([1, 3], [0, 1]))
    plain.add([1, 2], [0, 1])
    plain.add([1, 3], [0, 1])
    assert committed(pairs).digest != committed(plain).digest
    mixed = PreparedWriter(tmp_path / "mixed", kind=PAIRS)
    with pytest.raises(ValueError, match="a sample of rows in a set of pairs"):
        mixed.add([1], [1])
    mixed.abandon()
