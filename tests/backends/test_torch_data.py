"""Batches, labels and the account of samples: the arithmetic that exactness stands on."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest

from backpropagate_backends.cpu import CpuBackend
from backpropagate_protocol.prepared import Prepared
from backpropagate_protocol.spec import TrainSpec

pytestmark = pytest.mark.usefixtures("cpu")


def test_labels_are_the_trained_tokens_and_padding_is_on_the_right(rows: Prepared) -> None:
    from backpropagate_backends.torch_data import CONSUMED, Collator, Consumed

    batch = Collator(rows, pad_token_id=9)([{"sample_id": 3}, {"sample_id": 0}])
    input_ids, labels, mask = (np.asarray(batch[name]) for name in ("input_ids", "labels", "attention_mask"))
    for at, index in enumerate((3, 0)):
        tokens, trained = (list(part) for part in rows.row(index))
        length = len(tokens)
        assert input_ids[at, :length].tolist() == tokens
        assert labels[at, :length].tolist() == [t if f else -100 for t, f in zip(tokens, trained, strict=True)]
        assert mask[at].tolist() == [1] * length + [0] * (mask.shape[1] - length)
        assert set(input_ids[at, length:].tolist()) <= {9}
        assert set(labels[at, length:].tolist()) <= {-100}
    consumed = batch[CONSUMED]
    assert isinstance(consumed, Consumed)
    assert np.frombuffer(consumed.ids, "<i8").tolist() == [3, 0]
    assert consumed.tokens == mask.sum()


def test_the_order_does_not_depend_on_how_samples_are_cut() -> None:
    from backpropagate_backends.torch_data import Account, Consumed

    ids = np.array([5, 1, 4, 1, 3, 9], dtype="<i8")
    whole = Account()
    whole.take(Consumed(ids.tobytes(), 10))
    parts = Account()
    for part in (ids[:2], ids[2:3], ids[3:]):
        parts.take(Consumed(part.tobytes(), 1))
    assert (whole.samples, whole.order) == (parts.samples, parts.order) == (6, zlib.crc32(ids.tobytes()))


def test_the_position_counts_samples_across_epochs() -> None:
    from backpropagate_backends.torch_data import course

    way = course(TrainSpec(steps=20, effective_batch=4), rows=30)
    assert [way.samples_at(step) for step in (0, 1, 7, 8, 9, 16)] == [0, 4, 28, 30, 34, 60]
    assert way.micro_batches_before(9, accumulation=2) == 2


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 8), (1.5, 12), (2.0, 16), (0.1, 1), (None, 8)])
def test_epochs_become_steps(epochs: float | None, steps: int) -> None:
    from backpropagate_backends.torch_data import course

    assert course(TrainSpec(steps=None, epochs=epochs, effective_batch=4), rows=30).total_steps == steps


def test_skipped_batches_are_empty_once_and_the_rest_is_as_ever() -> None:
    from backpropagate_backends.torch_data import Batches, EpochOrder

    order = EpochOrder(30, seed=7)
    everything = list(Batches(order, 4))
    batches = Batches(order, 4, skip=3)
    assert list(batches) == [[], [], [], *everything[3:]]
    assert list(batches) == everything
    assert len(batches) == 8
    assert sorted(sample for batch in everything for sample in batch) == list(range(30))


def test_the_order_hangs_on_the_seed_and_the_epoch_alone() -> None:
    from backpropagate_backends.torch_data import EpochOrder

    first, same, other = EpochOrder(30, seed=7), EpochOrder(30, seed=7), EpochOrder(30, seed=9)
    assert list(first) == list(first) == list(same) != list(other)
    first.set_epoch(1)
    assert list(first) != list(same)


def test_the_order_is_the_one_that_accelerate_gives() -> None:
    """So a run on plain TRL with the same seed can be compared with ours, sample by sample."""
    from accelerate.data_loader import SeedableRandomSampler

    from backpropagate_backends.torch_data import EpochOrder

    ours, theirs = EpochOrder(30, seed=7), SeedableRandomSampler(range(30), data_seed=7)
    for epoch in range(3):
        ours.set_epoch(epoch)
        theirs.set_epoch(epoch)
        assert list(ours) == list(theirs)


def test_what_trl_shuffles_is_a_table_of_ids(cpu: CpuBackend, rows: Prepared, tmp_path: Path) -> None:
    from backpropagate_backends.torch_data import ids_dataset

    dataset = ids_dataset(rows)
    assert dataset.column_names == ["sample_id"]
    assert len(dataset) == 30
    assert dataset[7] == {"sample_id": 7}
