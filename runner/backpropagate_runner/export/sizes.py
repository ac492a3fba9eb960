"""How large what an export writes will be: estimated from a model's config and its parameters, before a weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from backpropagate_protocol.export_formats import QUANTIZATIONS
from backpropagate_protocol.reference import MAX_ROWS

# A small model's embedding is kept in finer blocks than the rest: its file is up to a tenth larger than the table says.
_MARGIN = 1.15
_BESIDE = 32 << 20  # the tokenizer, the metadata

_FLOAT = 4
_BITS = {"F32": 32, "F16": 16, "BF16": 16}


class Sizes(NamedTuple):
    """Bytes: of the result, and of all that lies on the disk at once while it is made."""

    result: int
    work: int


def stored_type(config: Mapping[str, object]) -> str:
    """In which precision a model's weights are kept, as safetensors names it; F16 if its config does not say."""
    for part in (config, _text(config)):
        for key in ("dtype", "torch_dtype"):
            match str(part.get(key, "")).removeprefix("torch."):
                case "bfloat16":
                    return "BF16"
                case "float16":
                    return "F16"
                case "float32":
                    return "F32"
    return "F16"


def estimated_parameters(config: Mapping[str, object]) -> int:
    """For a decoder as they are built today; 0 if the config does not say enough. Norms and biases are not counted."""
    text = _text(config)
    vocabulary, hidden, layers, heads = (
        _number(text, key) for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    )
    inner = _number(text, "intermediate_size")
    if not (vocabulary and hidden and layers and heads and inner):
        return 0
    width = _number(text, "head_dim") or hidden // heads
    attention = 2 * hidden * width * (heads + (_number(text, "num_key_value_heads") or heads))
    experts = max(_number(text, key) for key in ("num_experts", "num_local_experts", "n_routed_experts"))
    if experts:
        inner = experts * (_number(text, "moe_intermediate_size") or inner)
    tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings", True)) is not False
    return vocabulary * hidden * (1 if tied else 2) + layers * (attention + 3 * hidden * inner)


def folder_bytes(parameters: int, stored: str) -> int:
    """Of a model in transformers' layout."""
    return parameters * _BITS.get(stored, 32) // 8


def gguf_bytes(parameters: int, quantization: str) -> int:
    return int(parameters * QUANTIZATIONS[quantization].bits / 8 * (_MARGIN if quantization not in _EXACT else 1))


_EXACT = ("f32", "f16", "bf16")


def reference_bytes(config: Mapping[str, object], prompts: int) -> int:
    """Of what a model says to the proof's prompts: rows as long as its vocabulary."""
    return prompts * MAX_ROWS * _number(_text(config), "vocab_size") * _FLOAT


def of_merged(parameters: int, stored: str, reference: int) -> Sizes:
    """Two references are made: of the trained model, and of the merged one."""
    made = folder_bytes(parameters, stored) + _BESIDE
    return Sizes(made, made + 2 * reference)


def of_gguf(parameters: int, converted: str, quantized: str | None, reference: int) -> Sizes:
    """`quantized` None: what is converted is the result."""
    first = gguf_bytes(parameters, converted) + _BESIDE
    if quantized is None:
        return Sizes(first, first + reference)
    result = gguf_bytes(parameters, quantized) + _BESIDE
    return Sizes(result, first + result + reference)


def _text(config: Mapping[str, object]) -> Mapping[str, object]:
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def _number(config: Mapping[str, object], key: str) -> int:
    found = config.get(key)
    return found if isinstance(found, int) else 0
