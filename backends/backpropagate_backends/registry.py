"""Name → backend; the backend's file, and so its framework, is imported only when it is chosen."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import cast

from backpropagate_backends.base import Backend, Fuser
from backpropagate_protocol.errors import InvalidSettingError
from backpropagate_protocol.mlx_rules import PACKAGES, apple_silicon

# name → (module, class)
_BACKENDS = {
    "cuda": ("backpropagate_backends.cuda", "CudaBackend"),
    "cpu": ("backpropagate_backends.cpu", "CpuBackend"),
    "mlx": ("backpropagate_backends.mlx_backend", "MlxBackend"),
    "toy": ("backpropagate_backends.toy", "ToyBackend"),
    "unsloth": ("backpropagate_backends.unsloth", "UnslothBackend"),
}


def load(name: str) -> Backend:
    """The backend called `name`. `auto` must have been resolved with `resolve_auto` before."""
    if name not in _BACKENDS:
        raise InvalidSettingError(f"there is no backend called {name!r}; choose auto, cuda, cpu or mlx")
    module, cls = _BACKENDS[name]
    return cast(Backend, getattr(importlib.import_module(module), cls)())


def fuser() -> Fuser:
    """The one backend that fuses: MLX."""
    return cast(Fuser, load("mlx"))


def resolve_auto() -> str:
    """`mlx` on Apple silicon where it is installed; `cuda` if torch sees a GPU; else `cpu`. May import torch, so call it
    where the frameworks are being loaded anyway."""
    if apple_silicon() and all(find_spec(name) is not None for name in PACKAGES):
        return "mlx"
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return "cpu"  # which then says what is missing
    return "cuda" if torch.cuda.is_available() else "cpu"
