"""Whether a step that ran out of memory may be done again in this very process, in smaller micro-batches.

The parent says how far down (TrainJob.smaller); here is said when not: memory that is short again soon, or that the allocator
finds only by giving other memory back, is in pieces, and whole again in a new process only.
"""

from __future__ import annotations

from collections.abc import Callable

from backpropagate_protocol.errors import BackpropagateError, error_for
from backpropagate_protocol.jobs import TrainJob
from backpropagate_protocol.messages import NOTICEABLE, Fault, FaultKind, Halved, Progress
from backpropagate_runner.channel import Channel
from backpropagate_runner.faults import classify
from backpropagate_runner.voice import Voice

SOON = 20  # steps
THRASHING = 2  # steps in a row with retried allocations


class Shrinking:
    """One attempt's. `micro_batch`: the one that is trained with now."""

    def __init__(self, job: TrainJob, voice: Voice, channel: Channel, others: Callable[[], int]) -> None:
        self.micro_batch = job.micro_batch
        self._effective = job.spec.train.effective_batch
        self._left = list(job.smaller)
        self._voice, self._channel, self._others = voice, channel, others
        self.step = 0
        self._last: int | None = None  # the step of the newest halving of a training step
        self._rehearsing = False
        self._short: Fault | None = None
        self._retries: int | None = None
        self._retried = 0

    def before_step(self, step: int) -> None:
        self.step = step

    def rehearse(self, going_on: bool) -> None:
        """A rehearsal may go down as far as it has to: nothing is in pieces yet."""
        self._rehearsing = going_on

    def smaller(self, error: BaseException) -> int | None:
        """The micro-batch to do the same samples again with; None: it is a fault."""
        fault = classify(error, self._voice.where, self._voice.step)
        soon = self._last is not None and self.step - self._last < SOON and not self._rehearsing
        if fault.kind is not FaultKind.OOM or soon or not self._left or self._others() >= NOTICEABLE:
            return None
        self._short = fault
        return self._left[0]

    def shrunk(self) -> None:
        """The memory is back, and the smaller one is next."""
        assert self._short is not None
        self.micro_batch = self._left.pop(0)
        if not self._rehearsing:
            self._last = self.step
        step = 0 if self._rehearsing else self.step
        fault, accumulation = self._short, self._effective // self.micro_batch
        self._channel.send(Halved(step, self.micro_batch, accumulation, fault.message, fault.needed, fault.free))

    def thrashes(self, progress: Progress) -> bool:
        """Whether the allocator has been finding memory only by giving some back, steps in a row."""
        more = self._retries is not None and progress.retries > self._retries
        self._retried = self._retried + 1 if more else 0
        self._retries = progress.retries
        return self._retried >= THRASHING


def in_pieces() -> BackpropagateError:
    """What ends an attempt whose memory is in pieces."""
    return error_for(
        "RUNTIME_GPU_OOM",
        f"memory was found only by giving other memory back, in {THRASHING} steps one after the other",
    )
