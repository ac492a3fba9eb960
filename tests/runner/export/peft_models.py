"""Tiny models with random weights, adapters trained by nobody, and what PEFT itself makes of the two."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from backpropagate_protocol.spec import ModelSpec

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
TOKENS = 96

P = ParamSpec("P")
T = TypeVar("T")


def quietly(work: Callable[P, T]) -> Callable[P, T]:
    """What the libraries deprecate among themselves is no concern of these tests."""

    @functools.wraps(work)
    def silent(*args: P.args, **kwargs: P.kwargs) -> T:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return work(*args, **kwargs)

    return silent


def spec(folder: Path) -> ModelSpec:
    return ModelSpec(name=folder.name, path=str(folder))


def llama(*, tied: bool = False) -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=56,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=TOKENS,
            tie_word_embeddings=tied,
            attention_bias=True,
        )
    )


def qwen2(*, tied: bool = True, vocabulary: int = TOKENS, hidden: int = 32) -> PreTrainedModel:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(
            hidden_size=hidden,
            intermediate_size=56,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=vocabulary,
            tie_word_embeddings=tied,
        )
    )


def gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=TOKENS, n_positions=32, bos_token_id=1, eos_token_id=2)
    )


@quietly
def save_base(model: PreTrainedModel, folder: Path, dtype: str = "F32", shard: str = "5GB") -> Path:
    model.to(DTYPES[dtype]).save_pretrained(folder, max_shard_size=shard)
    return folder


@quietly
def load(folder: Path, dtype: str = "F32") -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype])


@quietly
def save_adapter(
    base: Path, folder: Path, lora: Mapping[str, object], dtype: str = "F32", strength: float = 0.05
) -> Path:
    """An adapter that changes something: all that would be trained is moved at random."""
    model = get_peft_model(load(base, dtype), LoraConfig(task_type="CAUSAL_LM", **lora))
    generator = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data.add_(torch.randn(weight.shape, generator=generator).to(weight.dtype) * strength)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


@quietly
def adapted(base: Path, adapter: Path, dtype: str = "F32") -> PeftModel:
    return PeftModel.from_pretrained(load(base, dtype), str(adapter))


@quietly
def merged_by_peft(base: Path, adapter: Path, dtype: str = "F32") -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = adapted(base, adapter, dtype).merge_and_unload().state_dict()
    return weights


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        answer: torch.Tensor = model.eval()(torch.arange(16)[None]).logits.float()
    return answer
