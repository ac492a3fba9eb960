"""A shortage whose memory does not come back: the fault that is told is the first one, with the stack that it came from."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch

from backpropagate_backends.torch_micro import Batch, Memory, MicroBatches, Tools
from backpropagate_protocol.prepared import Prepared
from tests.backends.torch_session import KeepingSession, make_job


class Kept(Memory):
    """The memory of a device on which something holds what the step had."""

    def give_back(self, level: int) -> bool:
        return False


def _a_layer_that_does_not_fit(batch: Batch) -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory.")


def test_memory_that_does_not_come_back_leaves_the_first_stack_in_the_fault(
    tiny: Path, rows: Prepared, tmp_path: Path
) -> None:
    session = KeepingSession(msgspec.structs.replace(make_job(tiny), smaller=(2,)), tmp_path, rows)
    dropped: list[str] = []
    tools = Tools(lambda ids: {}, lambda parts: None, lambda: dropped.append("gradients"))
    micro = MicroBatches(session, tools, 4, Kept(cuda=False))
    micro.begin(range(8))
    with pytest.raises(torch.OutOfMemoryError) as caught:
        micro.step(_a_layer_that_does_not_fit, {})
    [note] = caught.value.__notes__
    assert note.startswith("its memory did not come back; it was raised by\nTraceback")
    assert "_a_layer_that_does_not_fit" in note
    assert (session.sizes, dropped) == ([], ["gradients"])
