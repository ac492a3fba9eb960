"""Tiny random models of every architecture that our converter covers, in transformers' layout, with real tokenizers.

Nothing in them is at its initial value: norms and biases are perturbed, so that whatever is left out or mixed up shows.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ENDING = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]*[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]+{_ENDING}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]+[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]*{_ENDING}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = (
    "Hello world, the year is 2026 and I'm 12345 days old.",
    "  odd   spaces\tand\n\n\nlines  ",
    "Größe, naïve café, 東京タワー, 🚀🦙 don't DON'T they'LL",
    "<|im_start|>user\nWhat is 3+4?<|im_end|>\n<|im_start|>assistant\n",
    "CamelCaseWords/and/paths\n/HTTPServer2",
    "… “quotes” — and a dash",
)
# llama.cpp's own rules for tokenizers that look at capitals leave these marks out of words.
MARKS = "é̂ combining ́marks"
_CORPUS = [
    *TEXTS,
    "the quick brown fox jumps over the lazy dog; it's what they'd expect, isn't it? 1 22 333 4444",
    *TEXTS,
] * 3

VOCABULARY, PADDED = 384, 400  # tokens that are learnt at most; rows of the embedding
_SIZES = {
    "vocab_size": PADDED,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


@dataclass(frozen=True)
class Tiny:
    """How to make one of them. rule: how its tokenizer splits text."""

    make: Callable[[], PreTrainedConfig]
    rule: str = QWEN2
    bos: bool = False  # its tokenizer puts a BOS before every text


def _llama(**more: object) -> PreTrainedConfig:
    return LlamaConfig(**{**_SIZES, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, **more})


_LONG = [1.0 + 0.5 * index for index in range(12)]
_SHORT = [1.0 + 0.1 * index for index in range(12)]
MODELS: dict[str, Tiny] = {
    "llama3": Tiny(
        lambda: _llama(
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        ),
        LLAMA3,
        bos=True,
    ),
    "llama-tied-biases": Tiny(
        lambda: _llama(tie_word_embeddings=True, attention_bias=True, mlp_bias=True, num_key_value_heads=4), LLAMA3
    ),
    "llama-linear": Tiny(
        lambda: _llama(rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}), LLAMA3
    ),
    "mistral": Tiny(
        lambda: MistralConfig(
            **_SIZES, head_dim=48, sliding_window=None, rope_parameters={"rope_type": "default", "rope_theta": 1e6}
        ),
        TEKKEN,
        bos=True,
    ),
    "qwen2": Tiny(lambda: Qwen2Config(**_SIZES, rope_parameters={"rope_type": "default", "rope_theta": 1e6})),
    "qwen2-tied": Tiny(lambda: Qwen2Config(**_SIZES, tie_word_embeddings=True)),
    "qwen3": Tiny(lambda: Qwen3Config(**_SIZES, head_dim=64, tie_word_embeddings=True)),
    "smollm3": Tiny(lambda: SmolLM3Config(**{**_SIZES, "num_hidden_layers": 5}), LLAMA3),
    "phi3": Tiny(
        lambda: Phi3Config(
            **_SIZES,
            sliding_window=262144,
            tie_word_embeddings=True,
            original_max_position_embeddings=256,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.75,
                "long_factor": _LONG,
                "short_factor": _SHORT,
                "original_max_position_embeddings": 256,
            },
        ),
        GPT4O,
    ),
    "phi3-short": Tiny(lambda: Phi3Config(**_SIZES, sliding_window=None, original_max_position_embeddings=512), GPT4O),
}


def save(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """The model of this name, always the same, in `folder`."""
    tiny = MODELS[name]
    config = tiny.make()
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key or key.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
            else:
                parameter.mul_(3.0)
    model.to(dtype).save_pretrained(folder)
    save_tokenizer(folder, tiny.rule, bos=tiny.bos)
    return folder


def save_tokenizer(folder: Path, rule: str, *, bos: bool = False) -> Path:
    """tokenizer.json, tokenizer_config.json and chat_template.jinja, as they lie beside published models."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE(ignore_merges=rule in (LLAMA3, TEKKEN)))
    if rule == QWEN2:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(rule), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.add_tokens(["<tool>"])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "GPT2Tokenizer" if rule == GPT4O else "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "bos_token": "<s>" if bos else None,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder


@dataclass(frozen=True)
class Contents:
    """A GGUF file: metadata, and of each tensor type, shape and data."""

    said: dict[str, object]
    tensors: dict[str, tuple[str, tuple[int, ...], NDArray[np.generic]]]


def read(path: Path) -> Contents:
    reader = GGUFReader(path)
    return Contents(
        {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")},
        {
            tensor.name: (tensor.tensor_type.name, tuple(int(size) for size in tensor.shape), np.array(tensor.data))
            for tensor in reader.tensors
        },
    )
