"""Adapter weights written tensor by tensor: where each comes from, and the file that holds them.

No tensor of a file is held while another is written; the digest is taken on the way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backpropagate_protocol.errors import SLAOMergeError
from backpropagate_runner.combine.blend import Blend, float_rows
from backpropagate_runner.export.float_bits import STORED, narrow
from backpropagate_runner.export.tensor_file import StoredTensor, header_of

F32 = NDArray[np.float32]
Blocks = Callable[[int], Iterator[F32]]  # given the bytes of a block, its rows in order


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor that will be: `like` gives its name, shape and element type."""

    like: StoredTensor
    blocks: Blocks
    state: bool = False  # the next merge goes on from it

    @property
    def name(self) -> str:
        return self.like.name


def as_it_is(tensor: StoredTensor) -> Output:
    return Output(tensor, lambda size: (float_rows(tensor, *rows) for rows in _pieces(tensor, size)))


def blended(like: StoredTensor, blend: Blend) -> Output:
    # Old, new and their difference in float64: six times what a block of float32 takes.
    return Output(like, lambda size: (blend.rows(*rows) for rows in _pieces(like, size // 6)), state=True)


def computed(like: StoredTensor, made: Callable[[], F32], *, state: bool) -> Output:
    """`made` is called when the tensor's turn has come, and what it gives has the shape of `like`."""
    return Output(like, lambda _: iter((made(),)), state)


def write(
    path: Path, outputs: Sequence[Output], size: int, tick: Callable[[int, str], None], state: Path | None = None
) -> dict[Path, str]:
    """Writes the file, and all that is state in float32 into `state` on the way. Digests of what was written, by path.

    `size`: bytes of a block. `tick` is told the bytes written since it was last called, and the tensor's name.
    """
    outputs = sorted(outputs, key=lambda output: -STORED[output.like.dtype].itemsize)  # each lies where it is aligned
    files = [_File(path, [(output.name, output.like.dtype, output.like.shape) for output in outputs])]
    if state is not None:
        files.append(_File(state, [(output.name, "F32", output.like.shape) for output in outputs if output.state]))
    try:
        for output in outputs:
            taking = [file for file in files if file is files[0] or output.state]
            for block in output.blocks(size):
                if not np.isfinite(block).all():
                    raise SLAOMergeError(f"{output.name} is not finite any more after merging")
                for file in taking:
                    file.put(output.name, block)
                tick(block.size * STORED[output.like.dtype].itemsize, output.name)
    finally:
        for file in files:
            file.close()
    return {file.path: file.digest for file in files}


class _File:
    def __init__(self, path: Path, tensors: list[tuple[str, str, tuple[int, ...]]]) -> None:
        self.path = path
        self._dtypes = {name: dtype for name, dtype, _ in tensors}
        self._hash = hashlib.sha256()
        self._file = open(path, "wb")  # noqa: SIM115 - closed by `write`
        self._append(memoryview(header_of(tensors)))

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def put(self, name: str, block: F32) -> None:
        dtype = self._dtypes[name]
        out: NDArray[np.generic] = np.ascontiguousarray(block)
        if dtype != "F32":
            out = np.empty(block.shape, STORED[dtype])
            narrow(block.copy(), dtype, out)
            if dtype == "F16" and not np.isfinite(out.view(np.float16)).all():
                raise SLAOMergeError(f"{name} does not fit into 16 bits after merging")
        self._append(out.reshape(-1).view(np.uint8).data)

    def close(self) -> None:
        self._file.close()

    def _append(self, data: memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)


def _pieces(tensor: StoredTensor, size: int) -> Iterator[tuple[int, int]]:
    if not tensor.elements:
        return
    step = max(1, size // (4 * max(1, tensor.row_size)))
    for start in range(0, tensor.rows, step):
        yield start, min(start + step, tensor.rows)
