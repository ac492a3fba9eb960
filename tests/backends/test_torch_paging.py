"""Moments that a checkpoint brought back lie where a paged optimizer would have made them. Without a GPU: which of them."""

from __future__ import annotations

import copy

import pytest

from backpropagate_backends.cpu import CpuBackend

pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")


def test_the_moments_of_a_paged_optimizer_are_paged_again_after_a_load(cpu: CpuBackend) -> None:
    """bitsandbytes' own optimizer and its own loading; only the paged memory is stood for by memory with its mark."""
    import torch
    from bitsandbytes.optim import AdamW

    from backpropagate_backends.torch_paging import page_again

    class Paged(AdamW):  # type: ignore[misc]  # bitsandbytes has no types
        def get_state_buffer(self, p: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            buffer = torch.zeros_like(p, dtype=dtype)
            buffer.is_paged = p.numel() >= 1e5  # type: ignore[attr-defined]  # bitsandbytes' mark, and its limit
            return buffer

    large, small = (torch.nn.Parameter(torch.ones(rows, 512)) for rows in (512, 8))
    first = AdamW([large, small], lr=1e-3, optim_bits=8, is_paged=True)
    for parameter in (large, small):
        parameter.grad = torch.rand_like(parameter)
    first.step()
    saved = copy.deepcopy(first.state_dict())

    second = Paged([large, small], lr=1e-3, optim_bits=8, is_paged=True)
    second.load_state_dict(saved)
    assert not getattr(second.state[large]["state1"], "is_paged", False)  # or there would be nothing to mend
    assert page_again(second) == 2

    for name in ("state1", "state2"):
        assert second.state[large][name].is_paged
        assert not getattr(second.state[small][name], "is_paged", False)
        for parameter in (large, small):
            assert torch.equal(second.state[parameter][name], first.state[parameter][name])


def test_other_optimizers_are_left_alone(cpu: CpuBackend) -> None:
    import torch
    from bitsandbytes.optim import AdamW

    from backpropagate_backends.torch_paging import page_again

    parameter = torch.nn.Parameter(torch.ones(512, 512))
    parameter.grad = torch.rand_like(parameter)
    for optimizer in (torch.optim.AdamW([parameter]), AdamW([parameter], optim_bits=8)):
        optimizer.step()
        assert page_again(optimizer) == 0
