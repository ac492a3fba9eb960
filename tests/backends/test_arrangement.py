"""Orders of an epoch: every sample once, by optimizer steps and never by micro-batches."""

from __future__ import annotations

from array import array
from pathlib import Path

import msgspec
import numpy as np
import pytest

from backpropagate_backends.arrangement import BANDS, Arrangement, arrangement, lengths_of
from backpropagate_protocol.prepared import PAIRS, Prepared, PreparedWriter
from tests.backends.torch_session import make_data, make_job


def arranged(data: Prepared, *, order: str = "random", grouped: bool = False) -> Arrangement:
    spec = make_job(data.folder).spec
    return arrangement(
        msgspec.structs.replace(
            spec,
            data=msgspec.structs.replace(spec.data, order=order),
            train=msgspec.structs.replace(spec.train, group_by_length=grouped),
        ),
        data,
    )


def shuffles(rows: int, steps: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    bits = np.random.default_rng(seed)
    return bits.permutation(rows), bits.permutation(steps)


def test_rows_of_a_length_share_a_step_and_each_comes_once(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", rows=101)
    way = arranged(data, grouped=True)
    lengths = lengths_of(data)
    shuffled, steps = shuffles(101, way.steps(101))
    order = way.order(shuffled, steps)
    assert sorted(order.tolist()) == list(range(101))
    spread = [np.ptp(lengths[order[at : at + 4]]) for at in range(0, 100, 4)]
    at_random = [np.ptp(lengths[shuffled[at : at + 4]]) for at in range(0, 100, 4)]
    assert np.mean(spread) < np.mean(at_random) / 4
    assert lengths[order[:4]].max() == lengths[order[:100]].max()  # if it does not fit, that shows at once
    again = way.order(*shuffles(101, way.steps(101), seed=1))
    assert not np.array_equal(order, again)


def test_lengths_are_put_in_order_within_fifty_steps_and_no_further(tmp_path: Path) -> None:
    """Each stretch of 200 samples of the shuffle stays together, wherever its steps come."""
    way = Arrangement(lengths=np.arange(800) % 97, effective_batch=4)
    shuffled, steps = shuffles(800, way.steps(800))
    order = way.order(shuffled, steps)
    stretch = np.empty(800, dtype=np.int64)
    stretch[shuffled] = np.arange(800) // 200
    assert (np.ptp(stretch[order].reshape(-1, 4), axis=1) == 0).all()


def test_fewer_rows_than_a_step_stay_as_shuffled_by_length(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", rows=3)
    way = arranged(data, grouped=True)
    assert sorted(way.order(*shuffles(3, way.steps(3))).tolist()) == [0, 1, 2]


def test_a_given_order_is_that_of_the_file(tmp_path: Path) -> None:
    way = arranged(make_data(tmp_path / "data"), order="given")
    assert way.order(*shuffles(30, 7)).tolist() == list(range(30))


def test_a_curriculum_is_shuffled_within_its_tenths(tmp_path: Path) -> None:
    writer = PreparedWriter(tmp_path / "data")
    for _ in range(40):
        writer.add([1, 2, 3], [0, 1, 1])
    easy = array("q", [(7 * at) % 40 for at in range(40)])
    writer.commit(key="k", skipped=0, truncated=0, format="text", source_digest="d", easy=easy)
    way = arranged(Prepared(tmp_path / "data"), order="curriculum")
    order = way.order(*shuffles(40, 10)).tolist()
    size = 40 // BANDS
    for band in range(BANDS):
        part = slice(band * size, (band + 1) * size)
        assert sorted(order[part]) == sorted(easy[part])
    assert order != list(easy)
    with pytest.raises(ValueError, match="no order"):
        arranged(make_data(tmp_path / "other"), order="curriculum")


def test_eleven_rows_are_parted_into_ten_bands(tmp_path: Path) -> None:
    writer = PreparedWriter(tmp_path / "data")
    for _ in range(11):
        writer.add([1, 2, 3], [0, 1, 1])
    easy = array("q", range(11))
    writer.commit(key="k", skipped=0, truncated=0, format="text", source_digest="d", easy=easy)
    bands = arranged(Prepared(tmp_path / "data"), order="curriculum").bands
    assert bands is not None
    assert bands.tolist() == [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_the_length_of_a_pair_is_that_of_both_answers(tmp_path: Path) -> None:
    writer = PreparedWriter(tmp_path / "pairs", kind=PAIRS)
    writer.add_pair(([1, 2, 3], [0, 1, 1]), ([1, 2], [0, 1]))
    writer.add_pair(([1, 2], [0, 1]), ([1, 4, 5, 6], [0, 1, 1, 1]))
    writer.commit(key="k", skipped=0, truncated=0, format="pairs", source_digest="d")
    data = Prepared(tmp_path / "pairs")
    assert lengths_of(data).tolist() == [5, 6] == [data.length(0), data.length(1)]
