"""A model's tensors with an adapter merged in, some rows at a time: the numbers of an export.

The arithmetic is that of PEFT's `merge_and_unload()` (0.21; `tuners/lora/layer.py`, `variants.py`, `dora.py`) on a model
in its stored precision, with the adapter in float32, as `PeftModel.from_pretrained` holds it:

- Linear, Conv1D: W + scale x (B A), all in float32, then rounded once to the stored type (torch adds a float32 tensor to
  a narrower one in float32).
- Embedding: scale x (B A)^T is rounded to the stored type first, then added, then rounded.
- DoRA: magnitude / norm x (W + scale x B A) in float32, then rounded once. The norm is over each output: a row of a
  Linear, a column of a Conv1D or an Embedding.
- Saved modules and trained tokens take the place of what the base has, rounded to the stored type.

The matrix product is numpy's instead of torch's, which adds up in another order: the float32 deltas differ by some units
in their last place; after rounding to 16 bits the merged weights differ in rare ties, by one unit.

Where input and output embedding share one tensor and the adapter trained only one of them, PEFT's merge changes both, and
the merged model is not the one that was trained. Here they part: see `merge_plan`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from backpropagate_protocol.errors import BackpropagateError, MergeExportError, ModelLoadError, UserInputError
from backpropagate_runner.export.adapter import Adapter, LoraModule, as_float
from backpropagate_runner.export.float_bits import FLOATS, LARGEST, STORED, narrow, round_to, widen
from backpropagate_runner.export.merge_plan import TensorPlan, plan
from backpropagate_runner.export.model_files import ModelFiles
from backpropagate_runner.export.tensor_file import StoredTensor

_BEYOND = 1e8  # no weight of a model is larger
_PIECE = 1 << 18  # elements computed at once: they stay in the processor's cache

_PARTED = "only one of input and output embedding was trained, and the base has one tensor for both: the exported model has two"

Floats = NDArray[np.float32]


def open_weights(files: ModelFiles, adapter: Adapter | None) -> MergedWeights:
    """Raises UserInputError [INPUT_ADAPTER_UNSUPPORTED, INPUT_MODEL_UNSUPPORTED] if the two do not fit each other."""
    return MergedWeights(files, adapter)


class MergedWeights:
    """See `weights.Weights`. `config` is the configuration that goes with these tensors.

    Reading raises ModelLoadError or UserInputError [INPUT_ADAPTER_INVALID] if what comes out is not finite. Some MiB of scratch are kept between two calls.
    """

    def __init__(self, files: ModelFiles, adapter: Adapter | None) -> None:
        self._name = files.name
        self._plans, self.config = plan(files, adapter)
        self.notes = () if self.config is files.config else (_PARTED,)
        self.names: Sequence[str] = tuple(self._plans)
        self._factors = _Factors()
        self._values, self._rounded = np.empty(_PIECE, np.float32), np.empty(_PIECE, np.float32)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._plans[name].source.shape

    def dtype(self, name: str) -> str:
        return self._plans[name].dtype

    def touched(self, name: str) -> bool:
        return not self._plans[name].as_it_was

    def rows(self, name: str, start: int, stop: int) -> Floats:
        made = self._plans[name]
        if made.dtype not in FLOATS:
            raise MergeExportError(f"{name} of {self._name} is stored as {made.dtype}, which cannot be converted")
        size = made.source.row_size
        out = np.empty((stop - start, size), np.float32)
        if made.as_it_was:
            widen(made.source.read(start, stop), made.dtype, out)
        else:
            for at, values in self._computed(name, made, start, stop):
                part = out[at : at + len(values)]
                np.copyto(part, values)
                round_to(part, made.dtype)
        return out.reshape(stop - start, *made.source.shape[1:])

    def stored(self, name: str, start: int, stop: int) -> NDArray[np.generic]:
        """Of a tensor that is as it was this is a view of the file, not to be written to."""
        made = self._plans[name]
        shape = (stop - start, *made.source.shape[1:])
        if made.as_it_was:
            return made.source.read(start, stop).reshape(shape)
        out = np.empty((stop - start, made.source.row_size), STORED[made.dtype])
        for at, values in self._computed(name, made, start, stop):
            narrow(values, made.dtype, out[at : at + len(values)])
        return out.reshape(shape)

    def _computed(self, name: str, made: TensorPlan, start: int, stop: int) -> Iterator[tuple[int, Floats]]:
        """Rows start … stop-1 in pieces, not yet rounded: where each begins, counted from `start`, and its values, which
        are overwritten by the next.

        A piece is always computed whole, so that it makes no difference to any bit which rows are asked for at once: a
        matrix product adds up in an order that depends on its size.
        """
        for first, last in _pieces(made, start, stop):
            values = _room(self._values, last - first, made.source.row_size)
            self._compute(name, made, first, last, values)
            low, high = max(first, start), min(last, stop)
            yield low - start, values[low - first : high - first]

    def _compute(self, name: str, made: TensorPlan, first: int, last: int, out: Floats) -> None:
        """Rows first … last-1 into `out`, not yet rounded, but such that rounding keeps them finite."""
        if made.lora is None:
            self._base(made, first, last, out)
        else:
            self._sum(made, made.lora, first, last, out)
            if made.lora.magnitude is not None:
                self._direct(name, made, made.lora, made.lora.magnitude, first, last, out)
        if made.bias is not None:
            bias, scale = made.bias
            out += as_float(bias)[first:last, None] * np.float32(scale)
        if made.tokens is not None:
            indices, tensor = made.tokens
            for at, row in enumerate(indices):
                if first <= row < last:
                    widen(tensor.read(at, at + 1), tensor.dtype, out[row - first : row - first + 1])
        # NaN is not smaller than anything, so that one comparison finds it too.
        if not max(float(out.max(initial=0)), -float(out.min(initial=0))) < LARGEST[made.dtype]:
            raise self._no_numbers(name, made, first, last)

    def _no_numbers(self, name: str, made: TensorPlan, first: int, last: int) -> BackpropagateError:
        """Trying again makes the same numbers, so it is an error of what was given."""
        base = np.empty((last - first, made.source.row_size), np.float32)
        widen(made.source.read(first, last), made.source.dtype, base)
        if not np.isfinite(base).all() or np.abs(base).max(initial=0) > _BEYOND:
            return ModelLoadError(
                f"the base model {self._name} is damaged: {name} holds numbers that are not finite, or beyond all measure",
                suggestion="Download or copy the base model again.",
            )
        return UserInputError(
            f"merging makes numbers in {name} that are not finite, or too large for {made.dtype}",
            code="INPUT_ADAPTER_INVALID",
            suggestion="The adapter does not belong to this base model (--base names another), its training diverged, or "
            "one of the two is damaged.",
        )

    def _base(self, made: TensorPlan, first: int, last: int, out: Floats) -> None:
        widen(made.source.read(first, last), made.source.dtype, out)
        if made.source.dtype != made.dtype:
            round_to(out, made.dtype)

    def _sum(self, made: TensorPlan, lora: LoraModule, first: int, last: int, out: Floats) -> None:
        """W + scale x (B A), of these rows."""
        self._factors.product(lora, made.across, first, last, out)
        np.multiply(out, np.float32(lora.scale), out=out)
        if lora.kind == "embedding" and lora.magnitude is None:
            round_to(out, made.dtype)
        if made.source.dtype == made.dtype and made.dtype != "BF16":
            np.add(out, made.source.read(first, last), out=out)
        else:
            base = _room(self._rounded, *out.shape)
            self._base(made, first, last, base)
            np.add(out, base, out=out)

    def _direct(
        self, name: str, made: TensorPlan, lora: LoraModule, magnitude: StoredTensor, first: int, last: int, out: Floats
    ) -> None:
        """DoRA: the sum with the trained length in place of its own."""
        lengths = as_float(magnitude).reshape(-1)
        if made.across:
            if self._factors.columns[0] != name:
                norms = np.sqrt(self._column_squares(made, lora)).astype(np.float32)
                self._factors.columns = name, _ratio(lengths, norms)
            np.multiply(out, self._factors.columns[1], out=out)
        else:
            norms = np.sqrt(np.einsum("ij,ij->i", out, out))
            np.multiply(out, _ratio(lengths[first:last], norms)[:, None], out=out)

    def _column_squares(self, made: TensorPlan, lora: LoraModule) -> NDArray[np.float64]:
        squares = np.zeros(made.source.row_size)
        for first, last in _pieces(made, 0, made.source.rows):
            values = np.empty((last - first, made.source.row_size), np.float32)
            self._sum(made, lora, first, last, values)
            squares += np.einsum("ij,ij->j", values, values)
        return squares


def _pieces(made: TensorPlan, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """All pieces that have some of these rows."""
    rows, step = made.source.rows, max(1, _PIECE // max(1, made.source.row_size))
    for first in range(start - start % step, stop, step):
        yield first, min(first + step, rows)


class _Factors:
    """A and B of the module that is being worked on; one of the two is needed whole for each of its rows."""

    def __init__(self) -> None:
        self._of: LoraModule | None = None
        self._whole: Floats = np.empty((0, 0), np.float32)
        self.columns: tuple[str, Floats] = ("", np.empty(0, np.float32))  # DoRA's factor for each column, of one tensor

    def product(self, lora: LoraModule, across: bool, first: int, last: int, out: Floats) -> None:
        """Rows first … last-1 of B A, or of its transpose."""
        if self._of is not lora:
            self._of, self._whole = lora, as_float(lora.B if across else lora.A)
        if across:
            np.matmul(_some_columns(lora.A, first, last).T, self._whole.T, out=out)
        else:
            np.matmul(_some_rows(lora.B, first, last), self._whole, out=out)


def _some_rows(tensor: StoredTensor, first: int, last: int) -> Floats:
    stored = tensor.read(first, last)
    if tensor.dtype == "F32":
        return stored.view(np.float32)
    out = np.empty(stored.shape, np.float32)
    widen(stored, tensor.dtype, out)
    return out


def _some_columns(tensor: StoredTensor, first: int, last: int) -> Floats:
    stored = tensor.read()[:, first:last]
    out = np.empty(stored.shape, np.float32)
    widen(stored, tensor.dtype, out)
    return out


def _ratio(lengths: Floats, norms: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):  # found by whoever looks for what is not finite
        return lengths / norms


def _room(scratch: Floats, rows: int, size: int) -> Floats:
    """The scratch in this shape; fresh memory where a single row is larger than it."""
    if rows * size > scratch.size:
        return np.empty((rows, size), np.float32)
    return scratch[: rows * size].reshape(rows, size)
