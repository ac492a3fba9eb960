"""One optimizer step on torch in micro-batches that may get smaller: where memory runs out in forward or backward, the same
samples go through again in smaller parts, and the step is the one that a smaller micro-batch makes from the beginning.

The Trainer goes on drawing micro-batches of the size it began with. Once that is too large, the first of a step stands for all
of its samples, cut anew, and the others are passed over. A step that failed leaves no gradient and no drawn random number.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from backpropagate_backends.base import Session

Batch = dict[str, object]
One = Callable[[Batch], torch.Tensor]  # forward and backward of one micro-batch; its part of the step's loss

_SLACK = 128 << 20  # bytes: workspaces that libraries make once and keep


@dataclass(frozen=True, slots=True)
class Tools:
    """What a step needs of the Trainer. `batch`: the micro-batch of some samples; `parts`: told how many a step is cut into before
    it begins, and before it begins anew; `forget`: drops all gradients."""

    batch: Callable[[Sequence[int]], Batch]
    parts: Callable[[int], None]
    forget: Callable[[], None]


class Memory:
    """The device's memory. On the CPU nothing is known of it, and freeing is as good as free."""

    def __init__(self, cuda: bool) -> None:
        self._cuda = cuda
        self._before: int | None = None

    def allocated(self) -> int:
        """Bytes."""
        return torch.cuda.memory_allocated() if self._cuda else 0

    def begun(self) -> None:
        """A step is done, and with it the driver has loaded what it needs for us: the rest of what is taken is others'."""
        if self._before is None:
            self._before = self._foreign()

    def taken(self) -> int:
        """MiB that others took since then."""
        return 0 if self._before is None else max(0, self._foreign() - self._before) >> 20

    def _foreign(self) -> int:
        """Bytes that are not free, and not our allocator's: others' memory, and what the driver needs for us."""
        if not self._cuda:
            return 0
        try:
            free, total = torch.cuda.mem_get_info()
        except RuntimeError:
            return 0  # a device that no longer answers has a worse fault
        return total - free - torch.cuda.memory_reserved()

    def give_back(self, level: int) -> bool:
        """Whether no more than `level` bytes are left in use, and the device computes."""
        gc.collect()
        if not self._cuda:
            return True
        try:
            torch.cuda.empty_cache()
            sound = float(torch.ones(8, device="cuda").sum()) == 8.0
        except RuntimeError:
            return False
        return sound and self.allocated() <= level + _SLACK


class MicroBatches:
    """Does the micro-batches of one step after the other. `size`: the one that is trained with."""

    def __init__(self, session: Session, tools: Tools, size: int, memory: Memory) -> None:
        self.size = self._drawn = size
        self._session, self._tools, self._memory = session, tools, memory
        self.begin(())

    def begin(self, ids: Sequence[int]) -> None:
        """All samples of the step that is next."""
        self._ids = ids
        self._began = self._whole = False
        self._done: list[torch.Tensor] = []

    def step(self, one: One, batch: Batch) -> torch.Tensor:
        """The next of the step's micro-batches, as the Trainer drew them. Raises what `one` raises, if it is to be a fault.

        What it returns adds up to the loss of the step. Of a step that was done anew, the last bits of that sum may be others
        than a fresh process has; its gradients, and so the weights, are the same.
        """
        if not self._began:
            self._began = True
            self._random, self._level = random_state(), self._memory.allocated()
        if self._whole:
            return torch.zeros_like(self._done[0])
        if self.size == self._drawn:
            trouble = self._tried(one, [batch])
            if trouble is None:
                return self._done[-1]
            self._shrink(trouble)
        # Those that were done before are in the Trainer's sum already.
        counted = list(self._done)
        self._anew(one)
        total = _sum(self._done)
        return total - _sum(counted) if counted else total

    def _anew(self, one: One) -> None:
        """The whole step, from its first sample, in parts that fit."""
        while True:
            parts = [self._ids[start : start + self.size] for start in range(0, len(self._ids), self.size)]
            self._done.clear()
            self._tools.parts(len(parts))
            trouble = self._tried(one, (self._tools.batch(part) for part in parts))
            if trouble is None:
                self._whole = True
                return
            self._shrink(trouble)

    def _tried(self, one: One, batches: Iterable[Batch]) -> Exception | None:
        """What they raised, if the step is to be done in smaller parts for it."""
        try:
            for batch in batches:
                self._done.append(one(batch))
        except Exception as error:
            smaller = self._session.smaller(error, self._memory.taken())
            if smaller is None:
                raise
            self._smaller = smaller
            self._stack = "".join(traceback.format_exception(error))
            _let_go(error)
            return error
        return None

    def _shrink(self, trouble: Exception) -> None:
        self._tools.forget()
        if not self._memory.give_back(self._level):
            trouble.add_note(f"its memory did not come back; it was raised by\n{self._stack}")
            raise trouble
        restore(self._random)
        self.size = self._smaller
        self._session.shrunk()


def _sum(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """One after the other, as the Trainer adds them up."""
    total = torch.zeros_like(parts[0])
    for part in parts:
        total = total + part
    return total


def _let_go(error: BaseException) -> None:
    """Its frames hold all that the step had of the memory."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__


def random_state() -> list[torch.Tensor]:
    state = [torch.get_rng_state()]
    return [*state, torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else state  # type: ignore[no-untyped-call]


def restore(state: Sequence[torch.Tensor]) -> None:
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state(state[1])
