"""Importing MLX, and telling it how much of the machine's memory it may take."""

from __future__ import annotations

import importlib
import logging
import os

from backpropagate_backends.torch_warm import QUIET, check_version
from backpropagate_protocol.errors import DependencyError
from backpropagate_protocol.mlx_rules import PACKAGES

_SUPPORTED = {"mlx": ((0, 32), (1,)), "mlx-lm": ((0, 32), (1,))}
_CACHE = 4 << 30  # bytes of freed buffers that MLX may keep for the next step


def warm() -> None:
    """Raises DependencyError [DEP_MLX_UNAVAILABLE]."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        for distribution, (low, high) in _SUPPORTED.items():
            check_version(distribution, low, high, "mlx")
    except DependencyError as error:
        if error.code == "DEP_VERSION_UNSUPPORTED":
            raise
        raise unavailable(error.message) from error
    for module in (*PACKAGES, "mlx_lm.utils", "mlx_lm.tuner.lora", "mlx_lm.tuner.dora"):
        try:
            importlib.import_module(module)
        except (ImportError, OSError) as error:  # OSError: a library of the system that MLX needs
            raise unavailable(f"{module} cannot be imported: {error}") from error
    from transformers.utils import logging as transformers_logging

    logging.getLogger("mlx_lm").setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    _limits()


def unavailable(why: str) -> DependencyError:
    return DependencyError(
        why, code="DEP_MLX_UNAVAILABLE", suggestion="pip install 'backpropagate[mlx]', or use --backend cpu."
    )


def on_metal() -> bool:
    import mlx.core as mx

    return bool(mx.metal.is_available()) and mx.default_device() == mx.gpu


def _limits() -> None:
    """The memory of a Mac belongs to all programs. Up to what Metal itself recommends, weights are wired, so that they are
    not swapped out; above, MLX waits for its own work to end before it takes more."""
    import mlx.core as mx

    if not on_metal():
        # There, compiled kernels are C++ that is built while the training waits, with a compiler that may not be there.
        mx.disable_compile()
        return
    most = int(mx.device_info().get("max_recommended_working_set_size", 0))
    if most:
        mx.set_wired_limit(most)
        mx.set_memory_limit(most)
        mx.set_cache_limit(min(_CACHE, most // 8))
