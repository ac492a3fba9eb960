"""Puts an optimizer's moments back into paged memory after a checkpoint was loaded.

bitsandbytes loads them into plain device memory and never moves them again, so a paged optimizer would need more memory
after the first resume than before, on exactly the cards it is chosen for, and after an out-of-memory of all times.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Protocol, runtime_checkable

import torch

_MOMENTS = ("state1", "state2")


@runtime_checkable
class _OfBitsandbytes(Protocol):
    is_paged: bool
    param_groups: Sequence[dict[str, Sequence[torch.Tensor]]]
    state: MutableMapping[torch.Tensor, dict[str, torch.Tensor]]

    def get_state_buffer(self, p: torch.Tensor, dtype: torch.dtype) -> torch.Tensor: ...


def page_again(optimizer: object) -> int:
    """Moves them where the optimizer itself would have made them; returns how many moved. 0 for any other optimizer."""
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper
    if not isinstance(inner, _OfBitsandbytes) or not inner.is_paged:
        return 0
    moved = 0
    for group in inner.param_groups:
        for parameter in group["params"]:
            state = inner.state.get(parameter, {})
            for name in _MOMENTS:
                if name not in state:
                    continue
                loaded = state[name]
                buffer = inner.get_state_buffer(parameter, dtype=loaded.dtype)
                if getattr(buffer, "is_paged", False):  # small ones never are
                    buffer.copy_(loaded)
                    state[name] = buffer
                    moved += 1
    return moved
