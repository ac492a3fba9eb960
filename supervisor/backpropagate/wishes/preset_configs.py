"""Sizes of the bases that presets name, as their config.json gives them: for estimates before anything is fetched."""

from __future__ import annotations

from collections.abc import Mapping


def _sizes(
    family: str, vocabulary: int, hidden: int, inner: int, layers: int, heads: int, key_heads: int, **more: object
) -> Mapping[str, object]:
    return {
        "model_type": family,
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        **more,
    }


# By the hub id of the preset.
CONFIGS: dict[str, Mapping[str, object]] = {
    "Qwen/Qwen3.5-4B": _sizes("qwen3_5_text", 248320, 2560, 9216, 32, 16, 4, tie_word_embeddings=True),
    "microsoft/Phi-4-mini-instruct": _sizes("phi3", 200064, 3072, 8192, 32, 24, 8, tie_word_embeddings=True),
    "HuggingFaceTB/SmolLM3-3B": _sizes("smollm3", 128256, 2048, 11008, 36, 16, 4),
    "Qwen/Qwen2.5-7B-Instruct": _sizes("qwen2", 152064, 3584, 18944, 28, 28, 4, tie_word_embeddings=False),
    "Qwen/Qwen2.5-3B-Instruct": _sizes("qwen2", 151936, 2048, 11008, 36, 16, 2, tie_word_embeddings=True),
    "meta-llama/Llama-3.2-3B-Instruct": _sizes(
        "llama", 128256, 3072, 8192, 28, 24, 8, head_dim=128, tie_word_embeddings=True
    ),
    "meta-llama/Llama-3.2-1B-Instruct": _sizes(
        "llama", 128256, 2048, 8192, 16, 32, 8, head_dim=64, tie_word_embeddings=True
    ),
    "mistralai/Mistral-7B-Instruct-v0.3": _sizes("mistral", 32768, 4096, 14336, 32, 32, 8),
}
