"""The optimizers of the MLX backend, by transformers' names, set to compute what torch's do."""

from __future__ import annotations

import mlx.optimizers as optim

from backpropagate_protocol.mlx_rules import OPTIMIZERS
from backpropagate_protocol.rundir import Manifest
from backpropagate_protocol.spec import TrainSpec


def optimizer_of_run(wish: str, begun: Manifest | None) -> str:
    """What `auto` stands for; a resume keeps to what the run began with."""
    if begun is not None and begun.optimizer in OPTIMIZERS:
        return begun.optimizer
    return "adamw_torch" if wish == "auto" else wish


def make_optimizer(name: str, train: TrainSpec) -> optim.Optimizer:
    """Its learning rate is set before each step."""
    rate, decay = train.learning_rate, train.weight_decay
    if name == "adafactor":
        return optim.Adafactor(learning_rate=rate, scale_parameter=False, relative_step=False, weight_decay=decay)
    if name == "sgd":
        return optim.SGD(learning_rate=rate, weight_decay=decay)
    return optim.AdamW(learning_rate=rate, betas=[0.9, 0.999], eps=1e-8, weight_decay=decay, bias_correction=True)
