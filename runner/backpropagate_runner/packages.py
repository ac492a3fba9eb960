"""The packages that are installed here, and which of them are others than those that a checkpoint was made with."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from backpropagate_protocol.rundir import Manifest

_SHARED = ("transformers", "tokenizers", "safetensors")
_OF_TORCH = (
    "torch",
    "trl",
    "peft",
    "accelerate",
    "bitsandbytes",
    "unsloth",
    "triton",
    "torchao",
    "flash-attn",
    "liger-kernel",
)
_OF_MLX = ("mlx", "mlx-lm")
_ALL = ("backpropagate", *_SHARED, *_OF_TORCH, *_OF_MLX, "datasets")


def installed() -> dict[str, str]:
    """Distribution name → version."""
    found = {}
    for name in _ALL:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            pass
    return found


def told_if_others(resume: Manifest, packages: Mapping[str, str]) -> str | None:
    """What to say before a run goes on with other packages than it stopped with; None: nothing that may change its bits.

    It goes on all the same: whoever updates amid a run mostly wants to. But from there it is another run to the bit.
    """
    changed = [
        f"{name} {resume.packages.get(name, 'none')} → {packages.get(name, 'none')}"
        for name in _deciding(resume.backend)
        if resume.packages and resume.packages.get(name) != packages.get(name)
    ]
    if not changed:
        return None
    return (
        f"since the checkpoint of step {resume.step} packages have changed: {', '.join(changed)}. "
        "The run goes on, but no longer to the bit as it would have"
    )


def _deciding(backend: str) -> tuple[str, ...]:
    match backend:
        case "toy":
            return ("backpropagate",)
        case "mlx":
            return ("backpropagate", *_SHARED, *_OF_MLX)
        case _:
            return ("backpropagate", *_SHARED, *_OF_TORCH)
