"""Puts an adapter's weights into a fresh adapter of the same shape, before the first step: a run that begins from another.

The weights stay what they are on the disk, bit by bit: both are float32.
"""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file

from backpropagate_backends.base import ADAPTER_WEIGHTS
from backpropagate_backends.init_adapter import check_config, check_tensors, config_of, refusal


def begin_from(model: PeftModel, folder: Path) -> None:
    """`model` has its own, fresh adapter. Raises UserInputError [INPUT_ADAPTER_MISMATCH] for what does not fit it."""
    check_config(folder, config_of(folder), {**model.peft_config["default"].to_dict(), "peft_type": "LORA"})
    try:
        tensors = load_file(folder / ADAPTER_WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise refusal(folder, [f"its {ADAPTER_WEIGHTS} cannot be read: {error}"]) from error
    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    check_tensors(
        folder,
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
        {name: tuple(tensor.shape) for name, tensor in own.items()},
    )
    broken = [f"its {name} is not finite" for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise refusal(folder, broken)
    set_peft_model_state_dict(model, tensors)
