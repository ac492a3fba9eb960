"""A model's tensors, read row by row: what merging and converting see of a base model with or without an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Weights(Protocol):
    """All tensors of a model under the names that transformers gives them. Nothing is held in memory between two calls.

    A one-dimensional tensor has as many rows as elements. dtypes are named as safetensors does: F32, F16, BF16, …
    """

    names: Sequence[str]

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> str:
        """As it is stored, and as a merged one is rounded to."""

    def touched(self, name: str) -> bool:
        """Whether the adapter changes this tensor."""

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows start … stop-1 with the adapter merged in, rounded to the stored dtype, as float32; shape (stop-start, …)."""

    def stored(self, name: str, start: int, stop: int) -> NDArray[np.generic]:
        """The same rows with the bits that they have (or would have) on disk; bfloat16 as uint16."""
