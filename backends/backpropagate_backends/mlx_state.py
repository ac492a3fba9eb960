"""A checkpoint of the MLX backend: the adapter, the optimizer's state, and where the run stood. With these, nothing is lost.

    adapter_model.safetensors, adapter_config.json   the adapter, in PEFT's layout
    optimizer.safetensors                            the optimizer's tree, flattened, in the precision that it has
    state.json                                       step, samples, order, and the seed of the step's random numbers

Random numbers are drawn anew in each step, from the seed and the number of the step: the position is their whole state.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.optimizers as optim
import msgspec
import numpy as np
from mlx.utils import tree_flatten
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from backpropagate_backends import mlx_lora
from backpropagate_backends.base import ADAPTER_WEIGHTS
from backpropagate_protocol.errors import CheckpointError
from backpropagate_protocol.rundir import Manifest

OPTIMIZER, STATE = "optimizer.safetensors", "state.json"


class State(msgspec.Struct, frozen=True, kw_only=True):
    """state.json"""

    step: int
    samples_seen: int
    order: int
    seed: int
    optimizer: str


def random_state(seed: int, step: int) -> None:
    """Sets MLX's generator for optimizer step `step`, 1-based."""
    mx.random.seed((seed * 1_000_003 + step) & 0xFFFFFFFFFFFFFFFF)


@dataclass(frozen=True, slots=True)
class Copy:
    """All of it as numpy has it, so that a thread may write it while MLX goes on."""

    weights: mlx_lora.Arrays
    config: dict[str, object]
    optimizer: dict[str, NDArray[np.generic]]
    state: State

    def write(self, folder: Path) -> None:
        """Raises OSError if it cannot be written."""
        try:
            mlx_lora.save_copy(folder, self.weights, self.config)
            save_file(self.optimizer, folder / OPTIMIZER)
        except SafetensorError as error:
            raise OSError(str(error)) from error
        (folder / STATE).write_bytes(msgspec.json.encode(self.state))


def copied(weights: mlx_lora.Weights, config: dict[str, object], optimizer: optim.Optimizer, state: State) -> Copy:
    moments = {name: np.array(value) for name, value in tree_flatten(optimizer.state)}
    return Copy(mlx_lora.copied(weights), config, moments, state)


def load(folder: Path, manifest: Manifest) -> tuple[mlx_lora.Weights, dict[str, object], State]:
    """Adapter, optimizer's state, position. Raises CheckpointError if the folder is not a whole state."""
    for name in (ADAPTER_WEIGHTS, OPTIMIZER, STATE):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder.name} has no {name}: training would silently start over with it")
    try:
        state = msgspec.json.decode((folder / STATE).read_bytes(), type=State)
        optimizer = {name: mx.array(value) for name, value in load_file(folder / OPTIMIZER).items()}
    except (OSError, msgspec.DecodeError, SafetensorError) as error:
        raise CheckpointError(f"{folder.name} cannot be read: {error}") from error
    if state.step != manifest.step:
        raise CheckpointError(f"{folder.name} says step {manifest.step}, and its {STATE} step {state.step}")
    # In the order of a fresh run: norms are summed in it, and sums of floats hang on theirs.
    weights = dict(sorted(mlx_lora.load(folder).items()))
    return weights, _unflattened(optimizer), state


def _unflattened(flat: dict[str, mx.array]) -> dict[str, object]:
    """`step` and the rate stand by themselves; all else is a part of what is kept for a weight, whose name has dots."""
    tree: dict[str, object] = {}
    parts: dict[str, dict[str, mx.array]] = {}
    for name, value in sorted(flat.items()):
        weight, _, part = name.rpartition(".")
        if weight:
            parts.setdefault(weight, {})[part] = value
        else:
            tree[name] = value
    return tree | parts
