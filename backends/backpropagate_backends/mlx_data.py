"""Prepared rows as MLX takes them: micro-batches of token ids and loss flags, padded on the right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from backpropagate_backends.course import Consumed
from backpropagate_protocol.prepared import Prepared


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """ids, int32 (rows, longest); flags, float32 (rows, longest): 1 where a token carries loss."""

    ids: mx.array
    flags: mx.array
    consumed: Consumed


def losses_in(data: Prepared, samples: NDArray[np.int64]) -> int:
    """Tokens that carry loss in these samples: the first token of a row is foreseen by nothing."""
    return sum(sum(data.row(int(sample))[1][1:]) for sample in samples)


def micro_batches(data: Prepared, samples: NDArray[np.int64], size: int, round_to: int) -> Iterator[MicroBatch]:
    """`round_to`: lengths are padded to a multiple of it, where each new shape costs a compilation."""
    for start in range(0, len(samples), size):
        part = samples[start : start + size]
        rows = [data.row(int(sample)) for sample in part]
        longest = max(len(tokens) for tokens, _ in rows)
        # One more than a multiple: what goes into the model is all but the last token.
        width = longest if round_to == 1 else -(-(longest - 1) // round_to) * round_to + 1
        ids = np.zeros((len(rows), width), dtype=np.int32)
        flags = np.zeros((len(rows), width), dtype=np.float32)
        for at, (tokens, trained) in enumerate(rows):
            ids[at, : len(tokens)] = tokens
            flags[at, : len(tokens)] = np.asarray(trained) != 0
        tokens_in = sum(len(tokens) for tokens, _ in rows)
        yield MicroBatch(mx.array(ids), mx.array(flags), Consumed(part.astype("<i8").tobytes(), tokens_in))
