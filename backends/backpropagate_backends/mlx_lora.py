"""The adapter in MLX: which layers carry one, and how it goes to and comes from the disk in PEFT's layout.

    MLX                             PEFT, with `base_model.model.` before the layer's name
    lora_a        (inputs, r)       lora_A.weight             (r, inputs), transposed
    lora_b        (r, outputs)      lora_B.weight             (outputs, r), transposed
    m             (outputs,)        lora_magnitude_vector     (outputs,), of DoRA
    scale                           lora_alpha / r, or / sqrt(r)

Transposing changes no bit, so checkpoints are kept in this layout as well: each one is an adapter.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.lora import LoRALinear
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from backpropagate_backends.base import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from backpropagate_backends.init_adapter import check_config, check_tensors, config_of, refusal
from backpropagate_backends.mlx_config import unsupported
from backpropagate_backends.mlx_model import Base, layers
from backpropagate_protocol.errors import InvalidSettingError, UserInputError
from backpropagate_protocol.spec import LoraSpec

_PREFIX = "base_model.model."
_PARTS = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector"}
_MLX = {part: name for name, part in _PARTS.items()} | {"lora_magnitude_vector.weight": "m"}
_LINEAR = (nn.Linear, nn.QuantizedLinear)
Weights = dict[str, mx.array]
Arrays = dict[str, NDArray[np.float32]]


def scale_of(lora: LoraSpec) -> float:
    return lora.alpha / (math.sqrt(lora.r) if lora.use_rslora else lora.r)


def add_adapter(base: Base, lora: LoraSpec, seed: int, name: str) -> None:
    """LoRA or DoRA on `base.model`, float32, the same initial weights for the same seed. Raises InvalidSettingError, and
    UserInputError [INPUT_MODEL_UNSUPPORTED] if mlx-lm's names for the layers are not those of the files."""
    chosen = _chosen(base, lora.targets, name)
    _check_names(base, chosen, name)
    mx.random.seed(seed)
    put_on(base.model, chosen, lora.r, scale_of(lora), dropout=lora.dropout, dora=lora.use_dora)
    if lora.init == "gaussian":
        for _, module in adapted(base.model):
            module.lora_a = mx.random.normal(module.lora_a.shape) / lora.r
    mx.eval(base.model.trainable_parameters())


def put_on(
    net: nn.Module, chosen: list[str], r: int, scale: float, *, dropout: float = 0.0, dora: bool = False
) -> None:
    """An adapter on each of the layers called `chosen`."""
    kind = DoRALinear if dora else LoRALinear
    modules = dict(net.named_modules())
    made = []
    for path in chosen:
        if dora and isinstance(modules[path], nn.QuantizedLinear) and modules[path].bits not in (2, 4, 8):
            raise InvalidSettingError(
                f"mlx-lm has no DoRA on weights of {modules[path].bits} bits; leave --use-dora out"
            )
        made.append((path, kind.from_base(modules[path], r=r, scale=scale, dropout=dropout)))
    net.update_modules(tree_unflatten(made))


def _chosen(base: Base, targets: tuple[str, ...], name: str) -> list[str]:
    inside = {id(module) for layer in layers(base.model) for module in layer.modules()}
    linear = [
        path for path, module in base.model.named_modules() if isinstance(module, _LINEAR) and id(module) in inside
    ]
    if not targets:
        raise InvalidSettingError("the adapter has no target modules; `all-linear` takes every linear layer")
    if "all-linear" in targets:
        if len(targets) > 1:
            raise InvalidSettingError("`all-linear` already takes every linear layer; name it alone")
        if any(isinstance(module, (SwitchLinear, QuantizedSwitchLinear)) for module in base.model.modules()):
            raise unsupported(
                name,
                "its experts are one tensor, on which no PEFT adapter can lie; name the layers of its attention with "
                "--target-modules",
            )
        return sorted(linear)
    missing = [wish for wish in targets if not any(_is(path, wish) for path in linear)]
    if missing:
        there = ", ".join(sorted({path.rpartition(".")[2] for path in linear}))
        raise InvalidSettingError(f"{name} has no linear layer called {', '.join(missing)}; it has {there}")
    return sorted(path for path in linear if any(_is(path, wish) for wish in targets))


def _is(path: str, wish: str) -> bool:
    return path == wish or path.endswith(f".{wish}")


def _check_names(base: Base, chosen: list[str], name: str) -> None:
    """An adapter is found again by the names of the layers: they must be those that the files have."""
    stored = set()
    for file in base.folder.glob("model*.safetensors"):
        with safe_open(file, framework="numpy") as tensors:
            stored |= set(tensors.keys())
    strange = [path for path in chosen if f"{path}.weight" not in stored]
    if strange:
        raise unsupported(name, f"mlx-lm calls a layer {strange[0]}, and its files do not")


def adapted(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, module in net.named_modules():
        if isinstance(module, (LoRALinear, DoRALinear)):
            yield path, module


# --- to the disk and back -------------------------------------------------------------------------------------------


def about(base: Base, lora: LoraSpec, path: str) -> dict[str, object]:
    """What PEFT would write of it. `path`: of the base model."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": path,
        "r": lora.r,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": sorted({name.rpartition(".")[2] for name, _ in adapted(base.model)}),
        "bias": "none",
        "use_rslora": lora.use_rslora,
        "use_dora": lora.use_dora,
        "fan_in_fan_out": False,
        "init_lora_weights": True if lora.init == "default" else lora.init,
        "inference_mode": True,
    }


def save(folder: Path, weights: Weights, config: dict[str, object]) -> None:
    """`weights`: what is trained, by MLX's names. Raises OSError if it cannot be written."""
    save_copy(folder, copied(weights), config)


def save_copy(folder: Path, weights: Arrays, config: dict[str, object]) -> None:
    """The same of what `copied` returned; touches nothing of MLX. Raises OSError if it cannot be written."""
    try:
        save_file(weights, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from error
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def load(folder: Path) -> Weights:
    """What `save` wrote, and what PEFT writes, by MLX's names and in float32. Raises as `refusal` says."""
    try:
        with safe_open(folder / ADAPTER_WEIGHTS, framework="numpy"):  # is it whole? MLX reads when it computes
            tensors = cast(Weights, mx.load(str(folder / ADAPTER_WEIGHTS)))  # also bf16, which numpy has not
    except (OSError, SafetensorError, RuntimeError) as error:
        raise refusal(folder, [f"its {ADAPTER_WEIGHTS} cannot be read: {error}"]) from error
    found: Weights = {}
    for name, tensor in tensors.items():
        layer, part = _split(name)
        if not part:
            raise refusal(folder, [f"it holds {name}, which MLX has no place for"])
        turned = tensor.T if part in ("lora_a", "lora_b") else tensor
        found[f"{layer}.{part}"] = mx.contiguous(turned.astype(mx.float32))
    mx.eval(found)  # the file may be gone when they are used
    return found


def begin_from(base: Base, lora: LoraSpec, folder: Path) -> None:
    """The adapter in `folder` in place of the fresh one. Raises UserInputError [INPUT_ADAPTER_MISMATCH]."""
    check_config(folder, config_of(folder), about(base, lora, ""))
    weights = load(folder)
    own = dict(tree_flatten(base.model.trainable_parameters()))
    check_tensors(
        folder,
        {name: tuple(value.shape) for name, value in weights.items()},
        {name: tuple(value.shape) for name, value in own.items()},
    )
    broken = [f"its {name} is not finite" for name, value in weights.items() if not mx.isfinite(value).all().item()]
    if broken:
        raise refusal(folder, broken)
    base.model.load_weights(list(weights.items()), strict=False)


def wear(base: Base, folder: str) -> None:
    """Puts any LoRA in PEFT's layout on the model, to be asked. Raises UserInputError."""
    place = Path(folder)
    if not (place / ADAPTER_CONFIG).is_file():
        raise UserInputError(f"{folder} holds no adapter", code="INPUT_MODEL_NOT_FOUND")
    config = config_of(place)
    weights = load(place)
    for key in ("rank_pattern", "alpha_pattern", "modules_to_save"):
        if config.get(key):
            raise UserInputError(
                f"the adapter {folder} has a {key}, which MLX does not know", code="INPUT_ADAPTER_UNSUPPORTED"
            )
    r = int(str(config.get("r", 8)))
    alpha = float(str(config.get("lora_alpha", r)))
    scale = alpha / (math.sqrt(r) if config.get("use_rslora") else r)
    chosen = sorted({name.rpartition(".")[0] for name in weights})
    there = dict(base.model.named_modules())
    strange = [path for path in chosen if not isinstance(there.get(path), _LINEAR)]
    if strange:
        raise refusal(place, [f"the model has no linear layer {strange[0]}"])
    put_on(base.model, chosen, r, scale, dora=bool(config.get("use_dora")))
    own = dict(tree_flatten(base.model.trainable_parameters()))
    check_tensors(
        place,
        {name: tuple(value.shape) for name, value in weights.items()},
        {name: tuple(own[name].shape) for name in weights if name in own},
    )
    base.model.load_weights(list(weights.items()), strict=False)
    base.model.eval()
    mx.eval(base.model.parameters())


def take_off(base: Base) -> None:
    """Leaves the bare model."""
    bare = [(path, module.linear) for path, module in adapted(base.model)]
    if bare:
        base.model.update_modules(tree_unflatten(bare))


def copied(weights: Weights) -> Arrays:
    """By PEFT's names, in memory of numpy's own: no step changes it."""
    found = {}
    for name, value in weights.items():
        layer, _, part = name.rpartition(".")
        plain = np.array(value, dtype=np.float32)
        found[f"{_PREFIX}{layer}.{_PARTS[part]}"] = np.ascontiguousarray(plain.T)
    return found


def _split(name: str) -> tuple[str, str]:
    """A PEFT name as the layer and MLX's name of the part; the part is empty if it is none of a LoRA's."""
    bare = name.removeprefix(_PREFIX)
    for part, own in _MLX.items():
        if bare.endswith(f".{part}"):
            return bare.removesuffix(f".{part}"), own
    return bare, ""
