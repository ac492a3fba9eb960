"""An order from easy to hard: by the learnt tokens alone, kept with the prepared data, followed by the backends."""

from __future__ import annotations

import zlib
from array import array
from pathlib import Path

import msgspec
import pytest

from backpropagate_protocol.errors import InvalidSettingError
from backpropagate_protocol.messages import Done, TrainResult
from backpropagate_protocol.spec import DataSpec
from backpropagate_runner.curriculum import easy_first
from backpropagate_runner.validate import scan
from tests.runner.child import runner, train_job
from tests.runner.prepared_rows import made, opened, written

Rows = list[tuple[list[int], list[int]]]


def order(rows: Rows, width: int = 1) -> list[int]:
    return list(easy_first(lambda: [(array("i", ids), bytes(flags)) for ids, flags in rows], width))


def test_short_answers_of_common_tokens_are_easy() -> None:
    assert order([([1, 1, 1], [1, 1, 1]), ([1], [1]), ([1, 1], [1, 1])]) == [1, 2, 0]
    assert order([([1, 2], [1, 1]), ([1, 1], [1, 1]), ([1, 1], [1, 1])]) == [1, 2, 0]


def test_what_is_not_learnt_makes_nothing_hard() -> None:
    assert order([([1, 1], [1, 1]), ([9, 8, 7, 6, 1], [0, 0, 0, 0, 1])]) == [1, 0]


def test_both_answers_of_a_pair_count() -> None:
    one, two, three = ([1], [1]), ([1, 1], [1, 1]), ([1, 1, 1], [1, 1, 1])
    assert order([one, three, two, two, one, one], width=2) == [2, 0, 1]


def test_the_order_is_kept_with_the_prepared_data_only_where_it_is_wished_for(tmp_path: Path) -> None:
    source = written(tmp_path / "r.jsonl", {"text": "aaaa"}, {"text": "a"}, {"text": "aab"})
    easy = opened(made(DataSpec(source=source, order="curriculum"), tmp_path / "c")).easy
    assert easy is not None
    assert list(easy) == [1, 2, 0] or list(easy) == [1, 0, 2]
    assert opened(made(DataSpec(source=source), tmp_path / "c")).easy is None
    with pytest.raises(InvalidSettingError, match="no order called 'alphabetical'"):
        scan(DataSpec(source=source, order="alphabetical"))


@pytest.mark.parametrize("order", ["given", "curriculum"])
def test_a_training_reads_the_samples_in_the_wished_order(tmp_path: Path, order: str) -> None:
    """Ten samples or fewer: each tenth of a curriculum is one of them, so there is nothing to shuffle."""
    rows = [{"text": "a" * length} for length in (7, 3, 5, 1, 9, 2, 8, 4)]
    job = train_job(tmp_path, steps=4, effective_batch=4, micro_batch=2)
    source = written(tmp_path / "r.jsonl", *rows)
    data = msgspec.structs.replace(job.spec.data, source=source, order=order)
    with runner(msgspec.structs.replace(job, spec=msgspec.structs.replace(job.spec, data=data)), tmp_path) as child:
        done = child.finish()
    assert isinstance(done, Done)
    assert isinstance(done.result, TrainResult)
    epoch = list(range(8)) if order == "given" else sorted(range(8), key=lambda number: len(rows[number]["text"]))
    assert done.result.order == zlib.crc32(array("q", epoch * 2).tobytes())
