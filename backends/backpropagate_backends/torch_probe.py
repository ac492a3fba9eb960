"""What the probes do: import something, compute something tiny with it, and compare with the plain way."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import pairwise
from typing import Literal

import torch

from backpropagate_backends.probing import NotHere
from backpropagate_backends.torch_warm import warm

_ROWS, _HEADS, _KEYS, _SIZE = (5, 40, 19), 4, 2, 64


def _device() -> Literal["cpu", "cuda"]:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _needs_card(capability: tuple[int, int] = (0, 0)) -> str:
    if not torch.cuda.is_available():
        raise NotHere("needs a CUDA card")
    has = torch.cuda.get_device_capability()
    if has < capability:
        raise NotHere(f"needs compute capability {capability[0]}.{capability[1]}; this card has {has[0]}.{has[1]}")
    return "cuda"


def _needs(module: str, distribution: str) -> str:
    """The version that is installed."""
    if find_spec(module) is None:
        raise NotHere(f"{distribution} is not installed")
    try:
        return f"{distribution} {version(distribution)}"
    except PackageNotFoundError:
        return distribution


def _packages() -> str:
    warm(extra=_device())
    names = ("torch", "transformers", "peft", "trl", "accelerate", "datasets")
    return ", ".join(f"{name} {version(name)}" for name in names)


def _card() -> str:
    _needs_card()
    card = torch.cuda.get_device_properties(0)
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    layer = torch.nn.Linear(64, 64, device="cuda", dtype=dtype)
    layer(torch.randn(8, 64, device="cuda", dtype=dtype)).float().square().mean().backward()
    torch.optim.AdamW(layer.parameters(), fused=True).step()
    torch.cuda.synchronize()
    _finite(layer.weight)
    name = str(dtype).removeprefix("torch.")
    return f"{card.name}, {card.total_memory / 2**30:.1f} GiB, capability {card.major}.{card.minor}, {name}"


def _loss() -> str:
    warm(extra=_device())
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    device = _device()
    config = LlamaConfig(
        vocab_size=300, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
    )
    model = LlamaForCausalLM(config).to(device)
    ids = torch.arange(24, device=device).reshape(2, 12)
    plain = model(input_ids=ids, labels=ids).loss
    add_fused_lm_head(model, outputs=("log_probs",))
    said = model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs
    loss = -said.sum() / (2 * 11)
    loss.backward()
    torch.testing.assert_close(loss, plain, rtol=1e-2, atol=1e-2)
    _finite(model.lm_head.weight.grad)
    return f"trl {version('trl')} on {device}"


def _bitsandbytes() -> str:
    said = _needs("bitsandbytes", "bitsandbytes")
    import bitsandbytes

    device = _device()
    layer = bitsandbytes.nn.Linear4bit(64, 64, quant_type="nf4", compute_dtype=torch.float32).to(device)
    given = torch.randn(8, 64, device=device, requires_grad=True)
    layer(given).square().mean().backward()
    _finite(given.grad)
    weight = torch.nn.Parameter(torch.randn(128, 128, device=device))
    weight.grad = torch.ones_like(weight)
    bitsandbytes.optim.PagedAdamW8bit([weight], lr=1e-3).step()
    _finite(weight)
    return f"{said} on {device}: NF4, paged 8-bit AdamW"


def _attention(name: str) -> str:
    """The attention `name` of transformers on three rows side by side, against SDPA on each of them."""
    warm(extra="cuda")
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from backpropagate_backends.torch_attention import SEGMENTS, VARLEN, register, varlen_available

    register()
    if name == VARLEN and not varlen_available("cuda"):
        raise NotHere(f"torch {torch.__version__} has none for this card")

    class Layer(torch.nn.Module):
        is_causal, num_key_value_groups, layer_idx = True, _HEADS // _KEYS, 0

        def __init__(self) -> None:
            super().__init__()
            from transformers import LlamaConfig

            self.config = LlamaConfig(attn_implementation=name if name not in (SEGMENTS, VARLEN) else "sdpa")

    total, starts = sum(_ROWS), [sum(_ROWS[:at]) for at in range(len(_ROWS) + 1)]
    make = {"device": "cuda", "dtype": torch.bfloat16}
    query = torch.randn(1, _HEADS, total, _SIZE, **make, requires_grad=True)  # type: ignore[call-overload]
    key, value = (torch.randn(1, _KEYS, total, _SIZE, **make) for _ in range(2))  # type: ignore[call-overload]
    places = torch.tensor(starts, dtype=torch.int32, device="cuda")
    ends = {"cu_seq_lens_q": places, "cu_seq_lens_k": places, "max_length_q": max(_ROWS), "max_length_k": max(_ROWS)}
    layer = Layer()
    positions = torch.cat([torch.arange(row) for row in _ROWS])[None].cuda()
    function: Callable[..., tuple[torch.Tensor, object]] = ALL_ATTENTION_FUNCTIONS[name]
    out = function(layer, query, key, value, None, scaling=_SIZE**-0.5, position_ids=positions, **ends)[0]
    torch.autograd.backward(out.float().square().mean())
    for start, stop in pairwise(starts):
        cut = slice(start, stop)
        plain = sdpa_attention_forward(
            layer, query[:, :, cut], key[:, :, cut], value[:, :, cut], None, scaling=_SIZE**-0.5
        )[0]
        torch.testing.assert_close(out[:, cut], plain, rtol=3e-2, atol=3e-2)
    _finite(query.grad)
    return "forward and backward as SDPA has them"


def _varlen() -> str:
    _needs_card((8, 0))
    from backpropagate_backends.torch_attention import VARLEN

    return f"torch {torch.__version__}: {_attention(VARLEN)}"


def _flash(name: str, module: str, capability: tuple[int, int]) -> str:
    said = _needs(module, module.replace("_", "-"))
    _needs_card(capability)
    return f"{said}: {_attention(name)}"


def _liger() -> str:
    said = _needs("liger_kernel", "liger-kernel")
    _needs_card()
    warm(extra="cuda")
    from liger_kernel.transformers import _apply_liger_kernel_to_instance
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4
    )
    model = LlamaForCausalLM(config).to("cuda", torch.bfloat16)
    ids = torch.arange(24, device="cuda").reshape(2, 12)
    plain = model.model(input_ids=ids).last_hidden_state
    _apply_liger_kernel_to_instance(model=model, fused_linear_cross_entropy=False, cross_entropy=False)
    ours = model.model(input_ids=ids).last_hidden_state
    ours.float().square().mean().backward()
    torch.testing.assert_close(ours, plain, rtol=5e-2, atol=5e-2)
    _finite(model.model.embed_tokens.weight.grad)
    return f"{said}: forward and backward as the plain layers have them"


def _compile() -> str:
    device = _device()

    def small(values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(values) * values.mean()

    values = torch.randn(32, device=device, requires_grad=True)
    out = torch.compile(small, dynamic=True)(values)
    torch.autograd.backward(out.sum())
    torch.testing.assert_close(out, small(values))
    _finite(values.grad)
    return f"torch {torch.__version__} on {device}"


def _fp8() -> str:
    said = _needs("torchao", "torchao")
    _needs_card((8, 9))
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    layer = torch.nn.Sequential(torch.nn.Linear(128, 128, bias=False, device="cuda", dtype=torch.bfloat16))
    convert_to_float8_training(layer, config=Float8LinearConfig.from_recipe_name("rowwise"))
    given = torch.randn(32, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    layer(given).float().square().mean().backward()
    _finite(given.grad)
    return said


def _finite(values: torch.Tensor | None) -> None:
    if values is None or not bool(torch.isfinite(values).all()):
        raise RuntimeError("what was computed is not finite")


def _unsloth() -> str:
    _needs("unsloth", "unsloth")
    importlib.import_module("unsloth")  # before everything that it patches
    warm(extra=_device())
    return f"unsloth {version('unsloth')} on {_device()}"


TRIES: dict[str, Callable[[], str]] = {
    "packages": _packages,
    "card": _card,
    "loss": _loss,
    "bitsandbytes": _bitsandbytes,
    "varlen": _varlen,
    "flash_attention_2": lambda: _flash("flash_attention_2", "flash_attn", (8, 0)),
    "flash_attention_3": lambda: _flash("flash_attention_3", "flash_attn_interface", (9, 0)),
    "liger": _liger,
    "compile": _compile,
    "fp8": _fp8,
    "unsloth": _unsloth,
}
