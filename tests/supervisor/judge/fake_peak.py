"""The peak of a training's memory, of the very modules in their real sizes, without any memory: tensors that have only a shape.

Every tensor's storage is counted from when an operation makes it until nothing holds it any more. The device is a pretended CPU,
so what differs on CUDA is put in its place: the output head's tiles are folded by a kernel that makes no tensors, and 4-bit
weights (bitsandbytes needs real ones) are turned to 16 bits for each product, as its own layers do.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import transformers
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.function import FunctionCtx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import masking_utils
from trl.kernels import chunked_logprob
from trl.trainer.utils import add_fused_lm_head

from backpropagate.judge.memory import Setup

_MODELS = {"Qwen3_5Text": "Qwen3_5", "Gemma3Text": "Gemma3"}


@dataclass(frozen=True)
class Peak:
    """Bytes: what is there before a step, gradients of its first micro-batch included, and the most there ever was."""

    held: int
    peak: int


class _Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types there
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.see(leaf)
        return out


class _Product(torch.autograd.Function):
    """A frozen 4-bit weight, as bitsandbytes multiplies with it: whole in 16 bits, for a moment."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, shape: tuple[int, int]
    ) -> torch.Tensor:
        ctx.save_for_backward(packed)
        ctx.shape = shape  # type: ignore[attr-defined]  # as torch's own functions keep what is no tensor
        return nn.functional.linear(x, torch.empty(shape, dtype=x.dtype), bias)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return gradient @ torch.empty(ctx.shape, dtype=gradient.dtype), None, None, None  # type: ignore[attr-defined]


class _FourBit(nn.Linear):
    def __init__(self, old: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = old.in_features, old.out_features
        count = old.in_features * old.out_features
        self.weight = nn.Parameter(torch.empty(count // 2, 1, dtype=torch.uint8), requires_grad=False)
        self.register_buffer("scales", torch.empty(count // 64, dtype=torch.uint8))
        self.register_buffer("scales_of_scales", torch.empty(count // 64 // 256))
        self.bias = old.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.to(torch.bfloat16)
        shape = (self.out_features, self.in_features)
        product: torch.Tensor = _Product.apply(x.to(torch.bfloat16), self.weight, bias, shape)  # type: ignore[no-untyped-call]
        return product.clone()


@contextmanager
def _in_place(*changes: tuple[object, str, object]) -> Iterator[None]:
    """For as long as it lasts these attributes are others: here of libraries, on a device that is not there."""
    before = [getattr(owner, name) for owner, name, _ in changes]
    for owner, name, value in changes:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for (owner, name, _), value in zip(changes, before, strict=True):
            setattr(owner, name, value)


def _as_it_is(layer: object, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return x


def _nothing(*args: object, **kwargs: object) -> None:
    return


def fake_peak(family: str, fields: Mapping[str, object], setup: Setup) -> Peak:
    """Two steps of two micro-batches. family: transformers' name of it, such as `Qwen2`."""
    kernel = [
        (chunked_logprob, "_forward_tile", _nothing),
        (chunked_logprob, "_backward_tile", _nothing),
        (chunked_logprob, "_addmm_fp32", lambda into, a, b: into.add_(0)),
    ]
    device = [
        (BaseTunerLayer, "_move_adapter_to_device_of_base_layer", _nothing),
        (nn.Module, "to", lambda module, *args, **kwargs: module),
    ]
    forward: list[tuple[object, str, object]]
    forward = [] if setup.masked else [(masking_utils, "find_packed_sequence_indices", _nothing)]
    if setup.four_bit:
        forward.append((LoraLayer, "_cast_input_dtype", _as_it_is))
    with FakeTensorMode(allow_non_fake_inputs=True), _in_place(*kernel, *forward):
        with _in_place(*device):
            model = _model(family, fields, setup)
        return _run(model, setup)


def _model(family: str, fields: Mapping[str, object], setup: Setup) -> nn.Module:
    config = getattr(transformers, f"{family}Config")(**fields)
    config._attn_implementation = "eager" if setup.eager else "sdpa"
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = getattr(transformers, f"{_MODELS.get(family, family)}ForCausalLM")(config)
    finally:
        torch.set_default_dtype(torch.float32)
    for module in list(model.modules()) if setup.four_bit else []:
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and name != "lm_head":
                setattr(module, name, _FourBit(child))
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    whole = model
    if setup.adapter is not None:
        lora, targets = setup.adapter, setup.adapter.targets
        chosen = targets[0] if targets == ("all-linear",) else list(targets)
        wish = LoraConfig(task_type="CAUSAL_LM", r=lora.r, target_modules=chosen, use_dora=lora.use_dora)
        whole = get_peft_model(model, wish)
    if setup.checkpointing:
        whole.gradient_checkpointing_enable({"use_reentrant": False})
        if setup.adapter is not None:
            whole.enable_input_require_grads()
    trained: nn.Module = whole.train()
    return trained


def _run(model: nn.Module, setup: Setup) -> Peak:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], foreach=False)
    meter = _Meter()
    for tensor in [*model.parameters(), *model.buffers()]:
        meter.see(tensor)
    ids = torch.zeros((setup.rows, setup.length), dtype=torch.int64)
    held = 0
    with meter:
        for at in range(4):
            held = meter.now
            with torch.autocast("cpu", dtype=torch.bfloat16):
                mask = torch.ones_like(ids) if setup.masked else None
                said = model(input_ids=ids, attention_mask=mask, labels=ids, use_cache=False, fused_lm_head=True)
            loss = -said.log_probs.sum()
            del said
            loss.backward()
            del loss
            if at % 2:
                optimizer.step()
                optimizer.zero_grad()
    return Peak(held, meter.peak)
