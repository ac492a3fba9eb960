"""Matrix products of the base model in 8-bit floats, by torchao: half the time of bf16 on cards that have them.

The weights stay what they are; for each product both sides are scaled, row by row, to what eight bits can hold. Converted
before the adapter is put on: adapters are float32 as always, and what is trained is the same kind of adapter.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

import torch
from transformers import PreTrainedModel

from backpropagate_protocol.errors import InvalidSettingError

_CAPABILITY = (8, 9)  # Ada, Hopper, Blackwell
_MULTIPLE = 16  # the hardware multiplies blocks of this size
_RECIPE = "rowwise"


def check_fp8(device: Literal["cpu", "cuda"]) -> None:
    """Raises InvalidSettingError where there are no such products, with the reason."""
    without = "Leave --fp8 out."
    if device != "cuda":
        raise InvalidSettingError(
            "--fp8 needs a CUDA card; the CPU has no products in 8-bit floats", suggestion=without
        )
    if find_spec("torchao") is None:
        raise InvalidSettingError(
            "--fp8 needs torchao, which is not installed", suggestion="pip install torchao, or leave --fp8 out."
        )
    found = torch.cuda.get_device_capability(0)
    if found < _CAPABILITY:
        raise InvalidSettingError(
            f"--fp8 needs a card of compute capability 8.9 or more (Ada, Hopper, Blackwell); "
            f"{torch.cuda.get_device_name(0)} has {found[0]}.{found[1]}",
            suggestion=without,
        )


def multiply_in_fp8(model: PreTrainedModel) -> int:
    """Converts the linear layers of `model` in place, all but its output head; returns how many.

    Raises InvalidSettingError if there is none whose sides are multiples of 16.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    head = model.get_output_embeddings()
    converted = 0

    def fits(module: torch.nn.Module, name: str) -> bool:
        nonlocal converted
        plain = type(module) is torch.nn.Linear and module is not head
        if plain and module.in_features % _MULTIPLE == 0 and module.out_features % _MULTIPLE == 0:
            converted += 1
            return True
        return False

    convert_to_float8_training(model, module_filter_fn=fits, config=Float8LinearConfig.from_recipe_name(_RECIPE))
    if not converted:
        raise InvalidSettingError(
            "no layer of this model can be multiplied in 8-bit floats: their sides are no multiples of 16",
            suggestion="Leave --fp8 out.",
        )
    return converted
