"""Where MLX is the backend, and which wishes it cannot serve: asked by the parent before anything starts, and by the child.

Both must answer alike: `auto` is resolved in the child, and what it will be resolved to is checked in the parent.
"""

from __future__ import annotations

import platform
import sys

from backpropagate_protocol.spec import RunSpec

ALLOW_CPU = "BACKPROPAGATE_ALLOW_MLX_CPU"  # set to 1: MLX's CPU build on Linux, for tests
PACKAGES = ("mlx", "mlx_lm")

SCHEDULERS = (
    "linear", "cosine", "cosine_with_restarts", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt",
)  # fmt: skip
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd")  # transformers' names, MLX's arithmetic
INITS = ("default", "gaussian")

# How MLX words a want of memory, in small letters; on Metal and on the CPU it is the same memory. What comes to light while
# a Metal buffer is computed ends the process: these are then its last words in the log.
OUT_OF_MEMORY = (
    "kiogpucommandbuffercallbackerroroutofmemory", "[metal::malloc]", "[malloc] unable to allocate",
    "greater than the maximum allowed buffer size",
)  # fmt: skip
CPU_DEVICE = "mlx-cpu"
METAL_DEVICE = "metal"  # followed by the chip's name


def apple_silicon() -> bool:
    return sys.platform == "darwin" and platform.machine() == "arm64"


def refused_by_mlx(spec: RunSpec) -> str:
    """The first wish of a training that MLX cannot serve, in words; empty if there is none."""
    train, lora, data, model = spec.train, spec.lora, spec.data, spec.model
    wishes = (
        (train.method != "sft", f"--method {train.method}"),
        (train.mode != "lora", f"--mode {train.mode}"),
        (train.fp8, "--fp8"),
        (train.attention != "auto", f"--attention {train.attention}"),
        (train.liger is True, "--liger"),
        (train.unsloth is True, "--unsloth"),
        (data.packing is True, "--packing"),
        (model.dtype in ("fp16", "float16"), "--dtype fp16"),
        (train.optim != "auto" and train.optim not in OPTIMIZERS, f"--optim {train.optim}"),
        (train.scheduler not in SCHEDULERS, f"--lr-scheduler {train.scheduler}"),
        # mx.checkpoint draws other masks when it computes a layer again: the gradients would be wrong.
        (bool(train.gradient_checkpointing) and lora.dropout > 0, "--gradient-checkpointing with --lora-dropout"),
        (lora.init not in INITS, f"the adapter's init {lora.init!r}"),
    )
    return next((wish for refused, wish in wishes if refused), "")
