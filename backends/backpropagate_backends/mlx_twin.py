"""Does mlx-lm compute this kind of model rightly? Asked of a twin: the same configuration, cut down to a few million weights.

Loading a second, real model to compare with would double the memory that a training takes. What goes wrong in practice is a
setting that is not read (rotary positions, scales of embeddings and logits, what is tied), and a small model of the same
settings shows that as well as the large one. The settings are those of the model's own config.json: what transformers would
write of it says the same in other words, and mlx-lm may understand only these.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.utils import load_model

from backpropagate_backends.mlx_config import CONFIG, check_config, read_config, unsupported
from backpropagate_backends.mlx_model import folder_of
from backpropagate_backends.model_source import Source
from backpropagate_backends.rope_styles import Config, both_styles

_LAYERS, _HEADS, _WORDS, _WIDE = 6, 2, 64, 64
_EXPERTS = {  # of a mixture: how many there are, how many are asked, how wide they are
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": _WIDE,
    "shared_expert_intermediate_size": _WIDE,
}
_TOKENS = 24
_TOLERANCE = 0.01  # of the logits' spread; a setting that is not read makes it 1


def check_arithmetic(source: Source, notice: Callable[[str, str], None]) -> None:
    """Raises UserInputError [INPUT_MODEL_UNSUPPORTED] for a kind of model that mlx-lm gets wrong; a notice where that cannot
    be found out. Needs torch."""
    config = read_config(folder_of(source), source.name)
    check_config(config, source.name)
    if importlib.util.find_spec("torch") is None:
        notice(f"whether MLX computes {source.name} rightly was not tried: that needs torch", "info")
        return
    try:
        error = distance(config)
    except Exception as problem:  # noqa: BLE001 - whatever a library says to a configuration that it never met
        notice(f"whether MLX computes {source.name} rightly could not be tried on a small twin: {problem}", "warning")
        return
    if not error <= _TOLERANCE:  # also one that is no number
        raise unsupported(
            source.name,
            f"mlx-lm computes this kind of model wrongly (its logits are off by {error:.0%} of their spread)",
        )


def distance(config: Config) -> float:
    """Of a twin of this configuration: how far mlx-lm's logits are from transformers', in standard deviations."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as name:
        folder, small = Path(name), _small(config)
        (folder / CONFIG).write_text(json.dumps(small), encoding="utf-8")
        state = torch.random.get_rng_state()
        torch.manual_seed(0)
        twin = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).float().eval()
        with torch.no_grad():
            for weight in twin.parameters():
                weight.normal_(0.0, 0.3) if weight.ndim > 1 else weight.add_(torch.randn_like(weight) * 0.1)
            ids = torch.randint(0, _WORDS, (1, _TOKENS))
            expected = twin(input_ids=ids, use_cache=False).logits[0].numpy()
        torch.random.set_rng_state(state)
        twin.save_pretrained(folder)
        (folder / CONFIG).write_text(json.dumps(small), encoding="utf-8")
        net, _ = load_model(folder, model_config=both_styles(small))
        net.set_dtype(mx.float32)
        found = np.array(net(mx.array(ids.numpy().astype(np.int32)))[0])
    return float(np.abs(found - expected).max() / expected.std())


def _small(config: Config) -> Config:
    """The same kind of model with few and narrow layers; what concerns a single head stays as it is."""
    small = {key: value for key, value in config.items() if key not in ("quantization", "quantization_config", "dtype")}
    text = small.get("text_config")
    if isinstance(text, dict):
        small["text_config"] = _small(text)
        return small
    heads, hidden = int(str(small["num_attention_heads"])), int(str(small["hidden_size"]))
    width = int(str(small.get("head_dim") or hidden // heads))
    grouped = int(str(small.get("num_key_value_heads") or heads))
    count = min(_LAYERS, int(str(small["num_hidden_layers"])))
    small |= {
        "num_hidden_layers": count,
        "num_attention_heads": _HEADS,
        "hidden_size": _HEADS * width,
        "intermediate_size": _WIDE,
        "vocab_size": _WORDS,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if small.get("num_key_value_heads") is not None:  # what is not said may be understood in two ways, and stays unsaid
        small["num_key_value_heads"] = _HEADS if grouped == heads else 1
    for key, most in _EXPERTS.items():
        if isinstance(small.get(key), int):
            small[key] = min(int(str(small[key])), most)
    for key in ("layer_types", "no_rope_layers"):
        kinds = small.get(key)
        if isinstance(kinds, list):
            small[key] = kinds[:count]
    return small
