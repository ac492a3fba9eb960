"""Before the first step the longest samples go forward and backward, so that memory which does not suffice runs out in the first
minute and not in the night. What it leaves is nothing: weights, moments, random state and the order of samples are untouched.
"""

from __future__ import annotations

import heapq
from time import perf_counter
from typing import TYPE_CHECKING

import torch

from backpropagate_backends.torch_data import SAMPLE_ID
from backpropagate_backends.torch_micro import random_state, restore
from backpropagate_protocol.prepared import Prepared

if TYPE_CHECKING:
    from backpropagate_backends.torch_sft import ExactTrainer

_MIB = 1 << 20


def rehearse(trainer: ExactTrainer, data: Prepared) -> None:
    """If the Job wants it. Raises what forward and backward raise, if even the smallest micro-batch is too much."""
    known, micro, session = trainer.session.job.rehearse, trainer.micro, trainer.session
    if known is None:
        return
    longest = heapq.nlargest(min(micro.size, len(data)), range(len(data)), key=data.length)
    tokens = data.length(longest[0])
    if tokens <= known:
        return
    began, random = perf_counter(), random_state()
    cuda = trainer.args.device.type == "cuda"
    moments = _moments(trainer) if cuda else 0
    with session.rehearsal():
        batch = trainer.data_collator([{SAMPLE_ID: index} for index in longest])
        _, count = trainer.get_batch_samples(iter([batch]), 1, trainer.args.device)
        trainer.cut_into(1)

        def one(batch: dict[str, object]) -> torch.Tensor:
            held = torch.empty(moments, dtype=torch.uint8, device=trainer.args.device)
            loss = trainer.one(trainer.model, batch, count)
            del held
            return loss

        micro.step(one, trainer.batch_of(longest))
        memory = torch.cuda.max_memory_allocated() // _MIB if cuda else 0
    trainer.forget_step()
    micro.begin(())
    restore(random)
    if cuda:
        torch.cuda.empty_cache()
    session.rehearsed(tokens, perf_counter() - began, memory)


def _moments(trainer: ExactTrainer) -> int:
    """Bytes that the optimizer will take on the device at its first step: it has nothing there before."""
    if trainer.optimizer.state:
        return 0
    name = str(trainer.args.optim)
    if "paged" in name or "adam" not in name:
        return 0
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    return sum(parameter.numel() * (2 if "8bit" in name else 2 * parameter.element_size()) for parameter in trained)
