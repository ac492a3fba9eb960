"""Name → backend; the backend's file, and so its framework, is imported only when it is chosen."""

from __future__ import annotations

import importlib
import sys
from typing import cast

from backpropagate_backends.base import Backend
from backpropagate_protocol.errors import DependencyError, InvalidSettingError

# name → (module, class)
_BACKENDS = {
    "cuda": ("backpropagate_backends.cuda", "CudaBackend"),
    "cpu": ("backpropagate_backends.cpu", "CpuBackend"),
    "toy": ("backpropagate_backends.toy", "ToyBackend"),
}


def load(name: str) -> Backend:
    """The backend called `name`. `auto` must have been resolved with `resolve_auto` before."""
    if name == "mlx":
        raise mlx_refusal()
    if name not in _BACKENDS:
        raise InvalidSettingError(f"there is no backend called {name!r}; choose auto, cuda, cpu or mlx")
    module, cls = _BACKENDS[name]
    return cast(Backend, getattr(importlib.import_module(module), cls)())


def mlx_refusal() -> InvalidSettingError | DependencyError:
    if sys.platform != "darwin":
        return InvalidSettingError("--backend mlx needs Apple silicon; here, use auto, cuda or cpu")
    return DependencyError("the MLX backend is not part of this release yet", code="DEP_MLX_UNAVAILABLE")


def resolve_auto() -> str:
    """`cuda` if torch sees a GPU, else `cpu`. Imports torch, so call it where the frameworks are being loaded anyway."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return "cpu"  # which then says what is missing
    return "cuda" if torch.cuda.is_available() else "cpu"
