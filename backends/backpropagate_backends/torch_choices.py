"""What `auto` stands for on this machine, and what it stood for where the run began: a resume keeps to that.

Another optimizer cannot read the state of the first, another precision is another training, and a hub's `main` may have
moved on. The checkpoint's manifest says what was chosen; one of an older version says nothing, and then it is chosen anew.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

import msgspec
import torch

from backpropagate_backends.torch_model import NF4, Notice, Precision, choose_precision
from backpropagate_backends.torch_wishes import needs_bitsandbytes
from backpropagate_protocol.errors import InvalidSettingError, UserInputError
from backpropagate_protocol.rundir import Manifest
from backpropagate_protocol.spec import ModelSpec, TrainSpec

# Below this, the moments of a large adapter are better held in 8 bits, paged out to the host.
_SMALL_CARD_GIB = 24


def model_of_run(model: ModelSpec, begun: Manifest | None) -> ModelSpec:
    """The base model with the very weights, in the very precision, that the checkpoint `begun` was trained on."""
    if begun is None:
        return model
    if begun.model_revision:
        model = msgspec.structs.replace(model, revision=begun.model_revision)
    if begun.precision:
        *how, dtype = begun.precision.split("+")
        model = msgspec.structs.replace(model, dtype=dtype, load_in_4bit=NF4 in how)
    return model


def precision_of_run(
    model: ModelSpec, begun: Manifest | None, device: Literal["cpu", "cuda"], notice: Notice, train: TrainSpec
) -> Precision:
    """See `choose_precision`. Raises UserInputError [STATE_RUN_MISMATCH] if the run's precision cannot be had here."""
    try:
        return choose_precision(model_of_run(model, begun), device, notice, train)
    except InvalidSettingError as error:
        if begun is None or not begun.precision:
            raise
        raise UserInputError(
            f"the run was begun in {begun.precision}, and here: {error.message}",
            code="STATE_RUN_MISMATCH",
            suggestion=error.suggestion,
        ) from error


def optimizer_of_run(train: TrainSpec, begun: Manifest | None, precision: Precision) -> str:
    """A name of transformers'. Raises UserInputError [STATE_RUN_MISMATCH] if the run's optimizer cannot be had here."""
    name = begun.optimizer if begun is not None and begun.optimizer else _chosen(train, precision)
    if begun is not None and needs_bitsandbytes(name) and find_spec("bitsandbytes") is None:
        raise UserInputError(
            f"the run was begun with the optimizer {name}, which needs bitsandbytes, and that is not installed here",
            code="STATE_RUN_MISMATCH",
            suggestion="pip install bitsandbytes, then `backprop resume RUN`.",
        )
    return name


def checkpointing_of_run(wish: bool | None, train: TrainSpec, device: Literal["cpu", "cuda"]) -> bool:
    """Whether activations are made again instead of kept; None: on a card, and wherever every weight is trained."""
    return wish if wish is not None else device == "cuda" or train.mode == "full"


def _chosen(train: TrainSpec, precision: Precision) -> str:
    if train.optim != "auto":
        return train.optim
    if precision.device == "cpu":
        return "adamw_torch"
    card = torch.cuda.get_device_properties(0).total_memory / (1 << 30)
    # Of a whole model the moments in float32 would be four times its weights.
    if (train.mode == "full" or card < _SMALL_CARD_GIB) and find_spec("bitsandbytes") is not None:
        return "paged_adamw_8bit"
    return "adamw_torch_fused"
