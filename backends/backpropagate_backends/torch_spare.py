"""Host memory for the copy of a trained state, kept from one save to the next.

To touch memory for the first time costs several times what copying into it does, and while a state is copied the training
waits. So where the copy is small beside what is free, its memory is touched before the first save, in another thread, and
stays when the copy is written.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress

import torch

MOST = 2 << 30  # bytes that are kept while nothing is saved
_SHARE = 4  # and of what is free, no more than this part

_Kind = tuple[torch.Size, tuple[int, ...], torch.dtype]


class Spare:
    """One training's. A copy is given by `copy`, and comes back by `give_back` when nobody reads it any more."""

    def __init__(self) -> None:
        self._kept: dict[_Kind, list[torch.Tensor]] = {}
        self._touching: threading.Thread | None = None
        self._keeps = False

    @property
    def kept(self) -> int:
        """Bytes that wait for the next copy."""
        return sum(memory.nbytes for some in self._kept.values() for memory in some)

    def touch(self, state: Callable[[], Iterable[torch.Tensor]], free: Callable[[], int]) -> None:
        """Begins to make memory for the first copy of `state`. Once: later calls do nothing."""
        if self._touching is not None:
            return
        kinds = {(tensor.device, tensor.data_ptr(), _kind(tensor)): tensor for tensor in state()}
        needed = sum(tensor.nbytes for tensor in kinds.values())
        wanted = [_kind(tensor) for tensor in kinds.values() if tensor.is_contiguous()]
        if not _is_small(needed, free()):
            wanted = []
        self._touching = threading.Thread(target=self._touch, args=(wanted,), name="touch", daemon=True)
        self._touching.start()

    def _touch(self, kinds: Iterable[_Kind]) -> None:
        with suppress(MemoryError, RuntimeError):  # it is made when it is needed, then
            for shape, stride, dtype in kinds:
                memory = torch.empty_strided(shape, stride, dtype=dtype).zero_()
                self._kept.setdefault((shape, stride, dtype), []).append(memory)

    def begin(self, needed: int, free: Callable[[], int]) -> bool:
        """Before a copy of `needed` bytes: whether there is memory for it. `free`: asked for bytes, beside what is kept."""
        if self._touching is not None:
            self._touching.join()
        there = free() + self.kept
        self._keeps = _is_small(needed, there)
        if not self._keeps:
            self._kept.clear()
        return needed <= there

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        plain = tensor.detach()
        kept = self._kept.get(_kind(plain))
        if kept:
            return kept.pop().copy_(plain)
        return plain.clone() if plain.device.type == "cpu" else plain.cpu()

    def give_back(self, copies: Iterable[torch.Tensor]) -> None:
        """For the next copy, if they are to be kept. What the last one had no use for goes."""
        self._kept.clear()
        if self._keeps:
            for copy in copies:
                self._kept.setdefault(_kind(copy), []).append(copy)


def _kind(tensor: torch.Tensor) -> _Kind:
    return tensor.shape, tensor.stride(), tensor.dtype


def _is_small(needed: int, free: int) -> bool:
    return needed <= min(MOST, free // _SHARE)
