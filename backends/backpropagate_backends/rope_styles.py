"""A model's rotary positions in config.json, said in both ways there are.

transformers 5 writes `rope_parameters`; many of mlx-lm's models read only the older `rope_theta` and `rope_scaling`, and fall
back to a default without a word where these are missing. So a configuration that goes to MLX says both.
"""

from __future__ import annotations

from collections.abc import Mapping

Config = dict[str, object]


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
