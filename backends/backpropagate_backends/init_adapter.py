"""The adapter that a run begins from must be one of the very shape that the run trains: what differs is refused by name.

An adapter of another rank or scale would train, and mean something else than what was asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from backpropagate_backends.base import ADAPTER_CONFIG
from backpropagate_protocol.errors import BackpropagateError, error_for

Shapes = Mapping[str, tuple[int, ...]]

_NAMED = 3  # differences that a message tells; one says enough, and a large model has thousands

# What decides the meaning of the tensors, and what it is where a configuration says nothing.
_MEANING: dict[str, object] = {
    "peft_type": "LORA",
    "r": 8,
    "lora_alpha": 8,
    "use_rslora": False,
    "use_dora": False,
    "bias": "none",
    "lora_bias": False,
    "fan_in_fan_out": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
    "trainable_token_indices": None,
    "target_parameters": None,
    "layer_replication": None,
}


def config_of(folder: Path) -> dict[str, object]:
    """The folder's adapter_config.json. Raises UserInputError [INPUT_ADAPTER_MISMATCH] if there is none to be read."""
    try:
        found = json.loads((folder / ADAPTER_CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        raise refusal(folder, [f"its {ADAPTER_CONFIG} cannot be read: {error}"]) from error
    if not isinstance(found, dict):
        raise refusal(folder, [f"its {ADAPTER_CONFIG} is no object"])
    return found


def check_config(folder: Path, found: Mapping[str, object], wanted: Mapping[str, object]) -> None:
    """Raises UserInputError [INPUT_ADAPTER_MISMATCH] for settings that give the same tensors another meaning."""
    problems = []
    for name, default in _MEANING.items():
        one, other = (_plain(config.get(name), default) for config in (found, wanted))
        if one != other:
            problems.append(f"its {name} is {one}, and this run's is {other}")
    if problems:
        raise refusal(folder, problems)


def check_tensors(folder: Path, found: Shapes, wanted: Shapes) -> None:
    """Raises UserInputError [INPUT_ADAPTER_MISMATCH] unless both have the same tensors in the same shapes."""
    problems = [f"it has no {name}" for name in sorted(wanted.keys() - found.keys())]
    problems += [f"this run does not train its {name}" for name in sorted(found.keys() - wanted.keys())]
    for name in sorted(found.keys() & wanted.keys()):
        if found[name] != wanted[name]:
            problems.append(f"its {name} is {_shape(found[name])}, and this run's is {_shape(wanted[name])}")
    if problems:
        raise refusal(folder, problems)


def refusal(folder: Path, problems: list[str]) -> BackpropagateError:
    """The error for an adapter that a run cannot begin from."""
    more = [f"… and {len(problems) - _NAMED} more"] if len(problems) > _NAMED else []
    return error_for(
        "INPUT_ADAPTER_MISMATCH",
        "\n  ".join([f"the run cannot begin from the adapter {folder}:", *problems[:_NAMED], *more]),
    )


def _plain(value: object, default: object) -> object:
    """One way to say a setting: null, an empty pattern and what is left out are the same; so are 16 and 16.0."""
    if value is None or value == {} or value == []:
        return default
    return value


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
