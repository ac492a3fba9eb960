"""A model's configuration as far as MLX goes: how it is quantised, and what mlx-lm is known to compute wrongly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from backpropagate_backends.rope_styles import Config, both_styles
from backpropagate_protocol.errors import BackpropagateError, ModelLoadError, error_for

CONFIG = "config.json"


def read_config(folder: Path, name: str) -> Config:
    """Raises ModelLoadError."""
    try:
        found = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"the {CONFIG} of {name} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ModelLoadError(f"the {CONFIG} of {name} is no object")
    return found


def check_config(config: Mapping[str, object], name: str) -> None:
    """Raises UserInputError [INPUT_MODEL_UNSUPPORTED] for what mlx-lm is known to compute wrongly."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        scaling = both_styles(part).get("rope_scaling")
        if not isinstance(scaling, dict) or (scaling.get("type") or scaling.get("rope_type")) not in ("longrope", "su"):
            continue
        if scaling.get("short_factor") != scaling.get("long_factor"):
            raise unsupported(
                name, "mlx-lm applies its factors for long texts (longrope) to short ones, too, and is wrong there"
            )


def unsupported(name: str, why: str) -> BackpropagateError:
    """The error for a model that cannot be trained here."""
    return error_for(
        "INPUT_MODEL_UNSUPPORTED",
        f"{name} cannot be trained on MLX: {why}",
        suggestion="Use --backend cpu, or a machine with an NVIDIA GPU, or another model.",
    )


def quantization(config: Mapping[str, object]) -> Mapping[str, object] | None:
    """How MLX itself quantised the model on the disk; None if it did not."""
    found = config.get("quantization")
    return found if isinstance(found, dict) and "bits" in found else None
