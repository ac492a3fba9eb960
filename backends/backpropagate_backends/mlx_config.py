"""What mlx-lm must be told about a model's rotary positions, and which models it gets wrong whatever it is told.

transformers 5 writes `rope_parameters` into config.json; many of mlx-lm's models read only the older `rope_theta` and
`rope_scaling`, and fall back silently to a default. So both are given to it, always.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from backpropagate_protocol.errors import BackpropagateError, ModelLoadError, error_for

CONFIG = "config.json"
Config = dict[str, object]


def read_config(folder: Path, name: str) -> Config:
    """Raises ModelLoadError."""
    try:
        found = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"the {CONFIG} of {name} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ModelLoadError(f"the {CONFIG} of {name} is no object")
    return found


def both_styles(config: Mapping[str, object]) -> Config:
    """`config`, its rotary positions said in the old way too; unchanged where they are said in the old way only."""
    told = dict(config)
    text = told.get("text_config")
    if isinstance(text, dict):
        told["text_config"] = both_styles(text)
    rope = told.get("rope_parameters")
    if not isinstance(rope, dict):
        return told
    if isinstance(rope.get("full_attention"), dict):  # one for each kind of layer
        local = rope.get("sliding_attention")
        if isinstance(local, dict) and "rope_theta" in local:
            told["rope_local_base_freq"] = local["rope_theta"]
        rope = rope["full_attention"]
    if "rope_theta" in rope:
        told["rope_theta"] = rope["rope_theta"]
    if "partial_rotary_factor" in rope:
        told["partial_rotary_factor"] = rope["partial_rotary_factor"]
    kind = rope.get("rope_type", "default")
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    told["rope_scaling"] = None if kind == "default" else {**scaling, "type": kind}
    return told


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
