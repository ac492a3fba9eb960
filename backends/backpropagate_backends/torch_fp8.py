"""The base model's linear layers in 8-bit floats: half the memory of bf16, and on cards that have them products twice as fast.

Only weights that are frozen can be held so: each is rounded once, row by row, when the model is loaded. What goes in is rounded
at each product, and so is the gradient that comes back; there is none of the weights. Converted before the adapter is put on,
which stays float32 and sees what goes in unrounded. PEFT, transformers and the export see the same adapter as ever.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from transformers import PreTrainedModel

from backpropagate_protocol.errors import InvalidSettingError

_CAPABILITY = (8, 9)  # Ada, Hopper, Blackwell
_MULTIPLE = 16  # the hardware multiplies blocks of this size
_FORMAT = torch.float8_e4m3fn
_LARGEST = torch.finfo(_FORMAT).max
_LEAST_SCALE = 1e-12  # of a row of zeros
_WITHOUT = "Leave --fp8 out."


def check_fp8(device: Literal["cpu", "cuda"]) -> None:
    """Raises InvalidSettingError where there are no such products, with the reason."""
    if device != "cuda":
        raise InvalidSettingError("fp8 needs a CUDA card: the CPU does not multiply 8-bit floats", suggestion=_WITHOUT)
    found = torch.cuda.get_device_capability(0)
    if found < _CAPABILITY:
        raise InvalidSettingError(
            "fp8 needs a card of compute capability 8.9 or more (Ada, Hopper, Blackwell), and "
            f"{torch.cuda.get_device_name(0)} has {found[0]}.{found[1]}",
            suggestion=_WITHOUT,
        )


def multiply_in_fp8(model: PreTrainedModel) -> int:
    """Converts the linear layers of `model` in place, all but its output head; returns how many. Nothing is trained of them.

    Raises InvalidSettingError if there is none whose sides are multiples of 16.
    """
    head = model.get_output_embeddings()
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is torch.nn.Linear and child is not head
    ]
    fitting = [
        (parent, name, child)
        for parent, name, child in found
        if child.in_features % _MULTIPLE == 0 and child.out_features % _MULTIPLE == 0
    ]
    if not fitting:
        raise InvalidSettingError(
            "no layer of this model can be multiplied in 8-bit floats: their sides are no multiples of 16",
            suggestion=_WITHOUT,
        )
    for parent, name, child in fitting:
        setattr(parent, name, Fp8Linear(child))
    return len(fitting)


class Fp8Linear(torch.nn.Linear):
    """A frozen linear layer. weight8 (out, in): the weight, each row divided by its scale; scales (out, 1), float32."""

    scales: torch.Tensor

    def __init__(self, of: torch.nn.Linear) -> None:
        super().__init__(of.in_features, of.out_features, bias=False, device="meta", dtype=of.weight.dtype)
        self._wide = of.weight.dtype
        del self.weight
        weight8, scales = _rounded(of.weight.detach())
        self.weight8 = torch.nn.Parameter(weight8, requires_grad=False)
        self.register_buffer("scales", scales)
        self.bias = of.bias

    def __getattr__(self, name: str) -> torch.Tensor | torch.nn.Module:
        # Whoever asks a linear layer for its weight, as PEFT does for device and format, is given what is held here.
        if name == "weight" and "weight8" in self._parameters:
            return (self.weight8.float() * self.scales).to(self._wide)
        return super().__getattr__(name)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(…, in) to (…, out), in bf16."""
        product: torch.Tensor = _Product.apply(  # type: ignore[no-untyped-call]  # torch declares no types for it
            input.to(torch.bfloat16), self.weight8, self.scales
        )
        return product if self.bias is None else product + self.bias.to(product.dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x: torch.Tensor, weight8: torch.Tensor, scales: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(weight8, scales)
        rows, row_scales = _rounded(x.reshape(-1, x.shape[-1]))
        made = _multiplied(rows, weight8.t(), row_scales, scales.t().contiguous(), fast=True)
        return made.reshape(*x.shape[:-1], weight8.shape[0])

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        weight8, scales = ctx.saved_tensors  # type: ignore[attr-defined]  # torch does not declare it
        # The sum runs over the rows of the weight now, so that their scales go to the other side before it is rounded.
        flat = gradient.reshape(-1, gradient.shape[-1]).float() * scales.t()
        rows, row_scales = _rounded(flat)
        ones = torch.ones((1, weight8.shape[1]), dtype=torch.float32, device=weight8.device)
        made = _multiplied(rows, weight8.t().contiguous().t(), row_scales, ones, fast=False)
        return made.reshape(*gradient.shape[:-1], weight8.shape[1]), None, None


def _rounded(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row divided by its scale and rounded to 8 bits, and the scales (n, 1)."""
    largest = torch.linalg.vector_norm(rows, ord=math.inf, dim=-1, keepdim=True)
    scales = (largest.float() / _LARGEST).clamp_(min=_LEAST_SCALE)
    # A quotient may end a hair above the largest number, which would be none.
    return (rows / scales).clamp_(-_LARGEST, _LARGEST).to(_FORMAT), scales


def _multiplied(
    left: torch.Tensor, right: torch.Tensor, left_scales: torch.Tensor, right_scales: torch.Tensor, *, fast: bool
) -> torch.Tensor:
    """(n, k) by (k, m), in bf16; `right` has its columns in a row in memory, as the hardware reads them."""
    return torch._scaled_mm(
        left, right, scale_a=left_scales, scale_b=right_scales, out_dtype=torch.bfloat16, use_fast_accum=fast
    )
