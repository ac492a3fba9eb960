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
from numpy.typing import NDArray
from torch.utils.data import BatchSampler, Sampler

from backpropagate_backends.arrangement import STEPS_SEED, Arrangement
from backpropagate_backends.course import Account as Account
from backpropagate_backends.course import Consumed as Consumed
from backpropagate_backends.course import Course as Course
from backpropagate_backends.course import course as course
from backpropagate_protocol.prepared import Prepared

IGNORED = -100  # the label of a token without loss
CONSUMED = "consumed"  # the key of a batch under which its `Consumed` travels
SAMPLE_ID = "sample_id"  # the one column of the data set

Batch = dict[str, torch.Tensor | Consumed | int]
Ids = NDArray[np.int64]


def ids_dataset(data: Prepared) -> Dataset:
    """One column, the sample ids. The fingerprint is the data's digest, so that nothing is hashed or cached by row."""
    ids = pa.array(np.arange(len(data), dtype=np.int64))
    return Dataset(pa.table({SAMPLE_ID: ids}), fingerprint=data.manifest.digest[:32])


class EpochOrder(Sampler[int]):
    """The samples of each epoch in an order of its own, which hangs on the seed and the epoch and on nothing else.

    A plain one is the same as accelerate's seeded sampler gives, but as one array: a Python list of millions would take
    seconds.
    """

    def __init__(self, rows: int, seed: int, arranged: Arrangement | None = None) -> None:
        self._rows, self._seed, self._epoch = rows, seed, 0
        self._arranged = arranged or Arrangement()

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's loader before each epoch."""
        self._epoch = epoch

    def permutation(self) -> torch.Tensor:
        """int64 (rows,)"""
        shuffled = _shuffled(self._rows, self._seed + self._epoch)
        if self._arranged.plain:
            return shuffled
        steps = _shuffled(self._arranged.steps(self._rows), self._seed + self._epoch + STEPS_SEED)
        return torch.from_numpy(self._arranged.order(shuffled.numpy(), steps.numpy()))

    def __iter__(self) -> Iterator[int]:
        yield from self.permutation().tolist()

    def __len__(self) -> int:
        return self._rows


def _shuffled(count: int, seed: int) -> torch.Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


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


def ids_of(consumed: Consumed) -> list[int]:
    """The sample ids of a micro-batch that a collator made."""
    return [int(index) for index in np.frombuffer(consumed.ids, dtype="<i8")]


class Collator:
    """Sample ids → one micro-batch.

    Padded: input_ids, attention_mask, labels, each int64 (rows, longest). Side by side: one row with all tokens and
    nothing else, `position_ids` that begin anew with each sample, and where the samples begin, as the attention functions
    want to know it: int32 (samples + 1,). Which of the two hangs on the samples of the micro-batch alone: side by side
    where padding would add tokens to compute.
    """

    def __init__(self, data: Prepared, pad_token_id: int, side_by_side: bool = False) -> None:
        self._data = data
        self._pad = pad_token_id
        self._side_by_side = side_by_side

    def __call__(self, examples: Sequence[dict[str, int]]) -> Batch:
        ids = [example[SAMPLE_ID] for example in examples]
        rows = [_row(*self._data.row(index)) for index in ids]
        lengths = [len(tokens) for tokens, _ in rows]
        consumed = Consumed(np.array(ids, dtype="<i8").tobytes(), sum(lengths))
        shorter = sum(lengths) < max(lengths) * len(lengths)
        batch = _flat(rows, lengths) if self._side_by_side and shorter else _padded(rows, lengths, self._pad)
        return {**batch, CONSUMED: consumed}


def _row(tokens: memoryview, trained: memoryview) -> tuple[Ids, Ids]:
    """Tokens and labels. The first token has nothing before it that could foretell it, so it never carries loss."""
    labels = np.where(np.asarray(trained) != 0, tokens, IGNORED).astype(np.int64)
    labels[:1] = IGNORED
    return np.asarray(tokens, dtype=np.int64), labels


def _padded(rows: Sequence[tuple[Ids, Ids]], lengths: Sequence[int], pad: int) -> Batch:
    shape = (len(rows), max(lengths))
    input_ids = np.full(shape, pad, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.int64)
    for at, (tokens, wanted) in enumerate(rows):
        input_ids[at, : len(tokens)] = tokens
        labels[at, : len(tokens)] = wanted
        mask[at, : len(tokens)] = 1
    return {
        "input_ids": torch.from_numpy(input_ids),
        "attention_mask": torch.from_numpy(mask),
        "labels": torch.from_numpy(labels),
    }


def _flat(rows: Sequence[tuple[Ids, Ids]], lengths: Sequence[int]) -> Batch:
    starts = torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32))
    places = np.concatenate([np.arange(length, dtype=np.int64) for length in lengths])
    return {
        "input_ids": torch.from_numpy(np.concatenate([tokens for tokens, _ in rows]))[None],
        "labels": torch.from_numpy(np.concatenate([labels for _, labels in rows]))[None],
        "position_ids": torch.from_numpy(places)[None],
        "cu_seq_lens_q": starts,
        "cu_seq_lens_k": starts,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }
