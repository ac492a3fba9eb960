"""Answers prompts with a base model, with or without an adapter on it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from backpropagate_backends.model_source import find
from backpropagate_backends.torch_model import choose_precision, load_model
from backpropagate_backends.torch_tokenizer import load_tokenizer
from backpropagate_protocol.errors import ModelLoadError, UserInputError
from backpropagate_protocol.jobs import GenerateJob


def generate(job: GenerateJob, device: Literal["cpu", "cuda"]) -> tuple[str, ...]:
    """One text for each prompt. Greedy, and so repeatable, unless temperature > 0; then `seed` decides."""
    source = find(job.model)
    tokenizer = load_tokenizer(source)
    precision = choose_precision(job.model, device, lambda text, level: None)
    model = load_model(source, precision, tokenizer, lambda text, level: None)
    if job.adapter is not None:
        model = with_adapter(model, job.adapter)
    model.eval()
    set_seed(job.seed)
    return tuple(_answer(job, model, tokenizer, prompt) for prompt in job.prompts)


def with_adapter(model: PreTrainedModel, adapter: str) -> PeftModel:
    if not (Path(adapter) / "adapter_config.json").is_file():
        raise UserInputError(f"{adapter} holds no adapter", code="INPUT_MODEL_NOT_FOUND")
    try:
        return PeftModel.from_pretrained(model, adapter)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and "size mismatch" not in str(error):
            raise  # the device's own troubles are no fault of the adapter
        raise ModelLoadError(f"the adapter {adapter} cannot be put on this model: {error}") from error


def _answer(
    job: GenerateJob, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, prompt: str
) -> str:
    if tokenizer.chat_template:
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
    else:
        inputs = tokenizer(prompt, return_tensors="pt")
    inputs = {
        name: tensor.to(model.device) for name, tensor in inputs.items() if name in ("input_ids", "attention_mask")
    }
    sampling = {"do_sample": True, "temperature": job.temperature} if job.temperature > 0 else {"do_sample": False}
    with torch.inference_mode():
        ids = model.generate(
            **inputs,
            max_new_tokens=job.max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=ends_of(model, tokenizer),
            **sampling,
        )
    return str(tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


def ends_of(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends an answer: the tokenizer's, and those that the model's own configuration adds."""
    own = model.generation_config.eos_token_id
    ends = set(own if isinstance(own, list) else [own])
    return sorted({end for end in ends | {tokenizer.eos_token_id} if end is not None})
