"""A model that is used in the middle of its training, and afterwards is what it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def still(model: torch.nn.Module) -> Iterator[None]:
    """No gradient, no dropout, no gradient checkpointing, and so nothing drawn from the random state.

    Layers of 4-bit weights are in training mode meanwhile, which means nothing else to them: on the CPU bitsandbytes lays the
    weights of one in evaluation mode out anew, for inference only, in other arithmetic, and training on them fails from then on.
    """
    before = [(module, module.training) for module in model.modules()]
    for module, _ in before:
        module.training = _four_bit(module)
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in before:
            module.training = training


def _four_bit(module: torch.nn.Module) -> bool:
    return type(getattr(module, "weight", None)).__name__ == "Params4bit"
