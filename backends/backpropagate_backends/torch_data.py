"""The prepared rows as TRL sees them, and the account of which of them were consumed.

The `datasets.Dataset` that TRL shuffles holds nothing but sample ids; the collator fetches the tokens of a batch from
the memory map, so that a row is copied once, from the page cache into the padded batch. The ids of a micro-batch travel
with it as bytes and are entered into the account when the micro-batch is trained on, not when it is collated: the data
loader runs ahead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch.utils.data import BatchSampler, Sampler

from backpropagate_backends.course import Account as Account
from backpropagate_backends.course import Consumed as Consumed
from backpropagate_backends.course import Course as Course
from backpropagate_backends.course import course as course
from backpropagate_protocol.prepared import Prepared

IGNORED = -100  # the label of a token without loss
CONSUMED = "consumed"  # the key of a batch under which its `Consumed` travels
SAMPLE_ID = "sample_id"  # the one column of the data set


def ids_dataset(data: Prepared) -> Dataset:
    """One column, the sample ids. The fingerprint is the data's digest, so that nothing is hashed or cached by row."""
    ids = pa.array(np.arange(len(data), dtype=np.int64))
    return Dataset(pa.table({SAMPLE_ID: ids}), fingerprint=data.manifest.digest[:32])


class EpochOrder(Sampler[int]):
    """The samples of each epoch in a permutation of its own, which hangs on the seed and the epoch and on nothing else.

    The same as accelerate's seeded sampler gives, but as one array: a Python list of millions would take seconds.
    """

    def __init__(self, rows: int, seed: int) -> None:
        self._rows, self._seed, self._epoch = rows, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's loader before each epoch."""
        self._epoch = epoch

    def permutation(self) -> torch.Tensor:
        """int64 (rows,)"""
        return torch.randperm(self._rows, generator=torch.Generator().manual_seed(self._seed + self._epoch))

    def __iter__(self) -> Iterator[int]:
        yield from self.permutation().tolist()

    def __len__(self) -> int:
        return self._rows


class Batches(BatchSampler):
    """The micro-batches of an epoch; the last one may be smaller.

    On resume the Trainer draws the micro-batches that were trained on before and throws them away. `skip` says how many
    that are in the first epoch drawn: they are empty, which makes a million of them cost no more than the permutation.
    Should one ever be used, the collator fails on it.
    """

    def __init__(self, order: EpochOrder, micro_batch: int, skip: int = 0) -> None:
        super().__init__(order, micro_batch, drop_last=False)
        self._order = order
        self._skip = skip

    def __iter__(self) -> Iterator[list[int]]:
        skip, self._skip = self._skip, 0
        order = self._order.permutation()
        yield from repeat([], skip)
        for start in range(skip * self.batch_size, len(order), self.batch_size):
            yield order[start : start + self.batch_size].tolist()


class Collator:
    """Sample ids → one padded micro-batch: input_ids, attention_mask, labels, each int64 (rows, longest)."""

    def __init__(self, data: Prepared, pad_token_id: int) -> None:
        self._data = data
        self._pad = pad_token_id

    def __call__(self, examples: Sequence[dict[str, int]]) -> dict[str, torch.Tensor | Consumed]:
        ids = [example[SAMPLE_ID] for example in examples]
        rows = [self._data.row(index) for index in ids]
        shape = (len(rows), max(len(tokens) for tokens, _ in rows))
        input_ids = np.full(shape, self._pad, dtype=np.int64)
        labels = np.full(shape, IGNORED, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        for at, (tokens, trained) in enumerate(rows):
            length = len(tokens)
            input_ids[at, :length] = tokens
            labels[at, :length] = np.where(np.asarray(trained) != 0, tokens, IGNORED)
            mask[at, :length] = 1
        return {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(mask),
            "labels": torch.from_numpy(labels),
            CONSUMED: Consumed(np.array(ids, dtype="<i8").tobytes(), int(mask.sum())),
        }
