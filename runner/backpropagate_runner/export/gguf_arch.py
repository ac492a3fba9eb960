"""The architectures that our own converter covers: what a configuration becomes in GGUF, and what it must not say.

A family is covered when its conversion was checked, bit for bit and by its answers. What a configuration may say beyond
that (experts, sliding windows, other kinds of rotary scaling) is refused here rather than converted into something that
answers almost right; the official converter knows those.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

Value = str | int | float | bool

# Read by no inference engine: old checkpoints carry them.
_BUFFERS = (".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq")
_OUTPUT = "lm_head.weight"
# What a layer is made of, in GGUF's names; the table of names knows more, of models with experts.
_PARTS = frozenset(
    ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"]
)
_WHOLE = frozenset({"token_embd.weight", "output_norm.weight", "output.weight"})
_STEP_WITHOUT_ROPE = 4  # built into llama.cpp's smollm3


@dataclass(frozen=True)
class _Family:
    name: str  # general.architecture
    ropes: frozenset[str] = frozenset({"default"})
    permuted: bool = False  # llama.cpp pairs the halves of a head differently from transformers
    parts: frozenset[str] = _PARTS
    biases: frozenset[str] = frozenset()  # which of them may have one
    head_dim: bool = True  # heads may be of another size than hidden / heads
    dimensions: bool = False  # says the vocabulary's size and the rotary dimensions too
    tied: bool = False  # if the configuration does not say


_LLAMA = _Family("llama", frozenset({"default", "linear", "llama3"}), permuted=True, biases=_PARTS, dimensions=True)
_FAMILIES = {
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA,
    "Qwen2ForCausalLM": _Family("qwen2", biases=frozenset({"attn_q", "attn_k", "attn_v"}), head_dim=False),
    "Qwen3ForCausalLM": _Family("qwen3", parts=_PARTS | {"attn_q_norm", "attn_k_norm"}),
    "SmolLM3ForCausalLM": _Family("smollm3", permuted=True, dimensions=True, tied=True),
    "Phi3ForCausalLM": _Family("phi3", frozenset({"default", "longrope"}), parts=_PARTS | {"attn_qkv"}, head_dim=False),
}
COVERED = tuple(_FAMILIES)


class NotCovered(ValueError):
    """A configuration that our converter must not convert; the text says what is in the way."""


@dataclass(frozen=True)
class GgufArch:
    """One model's architecture, as GGUF says it.

    metadata: keys without the architecture's prefix. factors: one-dimensional tensors that are computed, not read.
    """

    name: str
    layers: int
    tied: bool
    vocabulary: int
    metadata: Mapping[str, Value]
    factors: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    permuted: Mapping[str, int] = field(default_factory=dict)  # q_proj, k_proj: how many heads
    parts: frozenset[str] = frozenset()  # of a layer, with .weight or .bias

    def heads(self, name: str) -> int:
        """How many heads the rows of a tensor are, if they must be permuted; 0 if they stay as they are."""
        return next((heads for part, heads in self.permuted.items() if f".{part}." in name), 0)

    def names(self, names: Iterable[str]) -> dict[str, str]:
        """transformers' names to GGUF's, in the given order, without what a GGUF leaves out: a tied output, buffers.

        Raises NotCovered for a tensor that this architecture does not have.
        """
        from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

        kind = next(kind for kind in MODEL_ARCH if MODEL_ARCH_NAMES[kind] == self.name)
        table = get_tensor_name_map(kind, self.layers)
        found: dict[str, str] = {}
        for name in names:
            if name.endswith(_BUFFERS) or (name == _OUTPUT and self.tied):
                continue
            mapped = table.get_name(name, try_suffixes=(".weight", ".bias"))
            if mapped is None or (mapped not in _WHOLE and mapped.split(".", 2)[-1] not in self.parts):
                raise NotCovered(f"the tensor {name}, which is none of a {self.name} model")
            found[name] = mapped
        return found

    def all_names(self, names: Iterable[str]) -> dict[str, str]:
        """The same of a whole model. Raises NotCovered also if one is missing."""
        found = self.names(names)
        self._complete(set(found.values()))
        return found

    def _complete(self, names: set[str]) -> None:
        wanted = {"token_embd.weight", "output_norm.weight"} | (set() if self.tied else {"output.weight"})
        first = {name.removeprefix("blk.0.") for name in names if name.startswith("blk.0.")}
        wanted |= {f"blk.{layer}.{part}" for layer in range(self.layers) for part in first or {"attn_norm.weight"}}
        if missing := sorted(wanted - names):
            raise NotCovered(f"no {missing[0]} ({len(missing)} tensors are missing)")


def architecture(config: Mapping[str, object]) -> GgufArch | None:
    """What our converter makes of this configuration; None if it does not cover it."""
    try:
        return read(config)
    except NotCovered:
        return None


def read(config: Mapping[str, object]) -> GgufArch:
    """The same, but raises NotCovered with the reason."""
    family = _family(config)
    _refuse(config, family)
    hidden, heads = _int(config, "hidden_size"), _int(config, "num_attention_heads")
    kv_heads = _int(config, "num_key_value_heads", heads)
    head_dim = _int(config, "head_dim", hidden // heads)
    if not family.head_dim and head_dim * heads != hidden:
        raise NotCovered(f"heads of {head_dim} in a {family.name} model of {hidden}")
    layers, context = _int(config, "num_hidden_layers"), _int(config, "max_position_embeddings")
    rope = _rope(config)
    kind = str(rope.get("rope_type", "default"))
    kind = "longrope" if kind == "su" else kind
    if kind not in family.ropes:
        raise NotCovered(f"rotary embeddings of the kind {kind} in a {family.name} model")
    vocabulary = _int(config, "vocab_size")
    metadata: dict[str, Value] = {
        "block_count": layers,
        "context_length": context,
        "embedding_length": hidden,
        "feed_forward_length": _int(config, "intermediate_size"),
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "rope.freq_base": _float(rope, "rope_theta"),
        "attention.layer_norm_rms_epsilon": _float(config, "rms_norm_eps"),
    }
    factors: dict[str, tuple[float, ...]] = {}
    if family.name == "phi3":
        turned = int(_float(rope, "partial_rotary_factor", 1.0) * hidden) // heads
        original = _int(rope, "original_max_position_embeddings", context)
        window = config.get("sliding_window")
        metadata["rope.dimension_count"] = turned
        metadata["rope.scaling.original_context_length"] = original
        # llama.cpp tells Phi-4 from the older ones by the zero
        metadata["attention.sliding_window"] = window if isinstance(window, int) else 0
        if kind == "longrope":
            metadata["rope.scaling.attn_factor"] = _longrope_attention(rope, context, original)
            for length in ("long", "short"):
                factors[f"rope_factors_{length}.weight"] = _factors(rope, f"{length}_factor", turned // 2)
    else:
        metadata["attention.key_length"] = metadata["attention.value_length"] = head_dim
        if _float(rope, "partial_rotary_factor", 1.0) != 1.0:
            raise NotCovered(f"partial rotary embeddings in a {family.name} model")
    if kind == "linear":
        metadata["rope.scaling.type"] = "linear"
        metadata["rope.scaling.factor"] = _float(rope, "factor")
    if kind == "llama3":
        factors["rope_freqs.weight"] = _llama3(rope, head_dim)
    if family.dimensions:
        metadata["vocab_size"] = vocabulary
        metadata["rope.dimension_count"] = head_dim
    return GgufArch(
        name=family.name,
        layers=layers,
        tied=bool(config.get("tie_word_embeddings", family.tied)),
        vocabulary=vocabulary,
        metadata=metadata,
        factors=factors,
        permuted={"q_proj": heads, "k_proj": kv_heads} if family.permuted else {},
        parts=frozenset(f"{part}.weight" for part in family.parts) | {f"{part}.bias" for part in family.biases},
    )


def _family(config: Mapping[str, object]) -> _Family:
    names = config.get("architectures")
    name = str(names[0]) if isinstance(names, list | tuple) and names else str(config.get("model_type", "unknown"))
    if name not in _FAMILIES:
        raise NotCovered(f"the architecture {name}")
    return _FAMILIES[name]


def _refuse(config: Mapping[str, object], family: _Family) -> None:
    if config.get("hidden_act", "silu") != "silu":
        raise NotCovered(f"the activation {config['hidden_act']}")
    for key in ("num_experts", "num_local_experts", "n_routed_experts", "quantization_config"):
        if config.get(key):
            raise NotCovered(f"{key} in the configuration")
    if not family.biases and (config.get("attention_bias") or config.get("mlp_bias")):
        raise NotCovered(f"biases in a {family.name} model")
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and set(kinds) - {"full_attention"} and family.name != "phi3":
        raise NotCovered("layers with another attention than the full one")
    window = config.get("sliding_window")
    if family.name in ("qwen2", "qwen3", "smollm3") and not config.get("use_sliding_window"):
        window = None  # these have the number in any case, and a switch beside it
    if isinstance(window, int) and window < _int(config, "max_position_embeddings"):
        raise NotCovered(f"a sliding window of {window} tokens")
    if family.name == "smollm3":
        layers = _int(config, "num_hidden_layers")
        builtin = [int((layer + 1) % _STEP_WITHOUT_ROPE != 0) for layer in range(layers)]
        said = config.get("no_rope_layers")
        step = config.get("no_rope_layer_interval", _STEP_WITHOUT_ROPE)
        if (said != builtin) if isinstance(said, list) else step != _STEP_WITHOUT_ROPE:
            raise NotCovered(f"rotary embeddings left out elsewhere than in every {_STEP_WITHOUT_ROPE}th layer")


def _rope(config: Mapping[str, object]) -> dict[str, object]:
    """Rotary parameters as transformers 5 says them, also out of an older configuration."""
    said = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(said, dict) or any(isinstance(value, dict) for value in said.values()) or "mrope_section" in said:
        raise NotCovered("rotary embeddings that differ between layers or sections")
    rope: dict[str, object] = dict(said)
    if "rope_type" not in rope and "type" in rope:
        rope["rope_type"] = rope["type"]
    for key in ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings"):
        if key not in rope and config.get(key) is not None:
            rope[key] = config[key]
    rope.setdefault("rope_theta", 10000.0)
    return rope


def _llama3(rope: Mapping[str, object], head_dim: int) -> tuple[float, ...]:
    """How much slower each pair of dimensions turns: long waves by the factor, short ones not, those between smoothly."""
    base, factor = _float(rope, "rope_theta"), _float(rope, "factor", 8.0)
    low, high = _float(rope, "low_freq_factor", 1.0), _float(rope, "high_freq_factor", 4.0)
    original = _float(rope, "original_max_position_embeddings", 8192)
    slower = []
    for index in range(0, head_dim, 2):
        wave = 2 * math.pi * base ** (index / head_dim)
        if wave < original / high:
            slower.append(1.0)
        elif wave > original / low:
            slower.append(factor)
        else:
            smooth = (original / wave - low) / (high - low)
            slower.append(1 / ((1 - smooth) / factor + smooth))
    return tuple(slower)


def _longrope_attention(rope: Mapping[str, object], context: int, original: int) -> float:
    if rope.get("attention_factor") is not None:
        return _float(rope, "attention_factor")
    scale = context / original
    return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1.0 else 1.0


def _factors(rope: Mapping[str, object], key: str, count: int) -> tuple[float, ...]:
    said = rope.get(key)
    if not isinstance(said, list) or len(said) != count:
        raise NotCovered(f"{key} is not a list of {count} numbers")
    return tuple(float(number) for number in said)


def _int(config: Mapping[str, object], key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise NotCovered(f"{key} is {value!r} in the configuration")
    return value


def _float(config: Mapping[str, object], key: str, default: float | None = None) -> float:
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise NotCovered(f"{key} is {value!r} in the configuration")
    return float(value)
