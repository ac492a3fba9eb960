"""A base model and its adapter as Unsloth makes them, and the Trainer with the loss that comes with such a model.

Imported in a process in which Unsloth was imported before everything else.
"""

from __future__ import annotations

import torch
from peft import PeftModel
from transformers import Trainer, set_seed
from unsloth import FastLanguageModel

from backpropagate_backends.model_source import Source
from backpropagate_backends.torch_model import Precision
from backpropagate_backends.torch_sft import ExactTrainer
from backpropagate_protocol.errors import InvalidSettingError
from backpropagate_protocol.spec import RunSpec

_EVERY_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def load_with_adapter(source: Source, precision: Precision, spec: RunSpec, checkpointing: bool) -> PeftModel:
    """LoRA in float32 on the very model that was named. Raises ModelLoadError, InvalidSettingError."""
    try:
        model, _ = FastLanguageModel.from_pretrained(
            source.path,
            max_seq_length=spec.data.max_length,
            dtype=precision.dtype,
            load_in_4bit=precision.four_bit,
            revision=source.revision,
            trust_remote_code=source.trust_remote_code,
            use_exact_model_name=True,  # not a twin of it that Unsloth has quantised
            random_state=spec.train.seed,
        )
    except (OSError, ValueError, KeyError, ImportError, NotImplementedError) as error:
        raise source.failure(error) from error
    set_seed(spec.train.seed)  # adapters begin at random
    lora = spec.lora
    try:
        adapted = FastLanguageModel.get_peft_model(
            model,
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            bias="none",
            target_modules=_EVERY_LINEAR if lora.targets == ("all-linear",) else list(lora.targets),
            use_rslora=lora.use_rslora,
            init_lora_weights=True if lora.init == "default" else lora.init,
            use_gradient_checkpointing="unsloth" if checkpointing and precision.device == "cuda" else checkpointing,
            random_state=spec.train.seed,
        )
    except (ValueError, TypeError) as error:
        raise InvalidSettingError(f"the adapter does not fit {source.name}: {error}") from error
    assert isinstance(adapted, PeftModel)
    return adapted


class UnslothTrainer(ExactTrainer):
    """The model computes its loss itself, over the tokens of the whole optimizer step, and keeps no logits."""

    def fuse_head(self) -> None:
        return

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        assert not return_outputs
        loss: torch.Tensor = Trainer.compute_loss(self, model, inputs, num_items_in_batch=num_items_in_batch)
        return loss
