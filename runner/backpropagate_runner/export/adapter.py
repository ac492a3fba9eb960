"""A LoRA adapter as PEFT saves it: what is in the folder, and which module each of its tensors belongs to.

Every tensor of the file is given to exactly one purpose. What is not known here is refused, never left out: an adapter
that is merged without one of its tensors answers differently, and nobody would see why.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from backpropagate_protocol.errors import UserInputError
from backpropagate_runner.export.float_bits import FLOATS, widen
from backpropagate_runner.export.tensor_file import BadTensorFile, StoredTensor, TensorFile
from backpropagate_runner.export.whole import check_whole

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_MERGE_YOURSELF = (
    "Merge it with the library that made it (PEFT: merge_and_unload, then save_pretrained) and export the merged model."
)
_DIVERGED = (
    "The file is damaged, or the training diverged: copy it again, use an earlier checkpoint, or train again with a lower "
    "--learning-rate."
)
_LARGEST = 65504.0  # the end of float16: no training makes a matrix of an adapter with more, a flipped bit does
_PREFIX = "base_model.model."
_LORA = re.compile(
    r"^(?P<module>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_A|lora_embedding_B"
    r"|lora_magnitude_vector(?:\.weight)?)$"
)
_TOKENS = ".token_adapter.trainable_tokens_delta"
# These change the base model before the first step, so that the adapter does not belong to the base that is on disk.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Settings of PEFT that change what the tensors mean, with the value at which they do not.
_FOREIGN: tuple[tuple[str, str], ...] = (
    ("target_parameters", "adapters on single parameters (target_parameters)"),
    ("layer_replication", "replicated layers (layer_replication)"),
    ("arrow_config", "Arrow"),
    ("use_bdlora", "block-diagonal adapters"),
    ("alora_invocation_tokens", "activated LoRA (aLoRA)"),
    ("velora_config", "VeLoRA"),
    ("monteclora_config", "MonteCLoRA"),
    ("kasa_config", "KaSA"),
    ("use_qalora", "QALoRA"),
    ("megatron_config", "Megatron"),
)


class _Config(msgspec.Struct):
    peft_type: str = ""
    r: int = 8
    lora_alpha: float = 8
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False
    alpha_pattern: dict[str, float] | None = None
    rank_pattern: dict[str, float] | None = None
    init_lora_weights: bool | str | None = None
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    base_model_name_or_path: str | None = None


@dataclass(frozen=True)
class LoraModule:
    """The adapter of one module: what it adds is `scale` x B x A, before DoRA turns it into a new direction."""

    name: str  # as transformers names the module
    kind: Literal["linear", "embedding"]
    A: StoredTensor  # (r, inputs)
    B: StoredTensor  # (outputs, r)
    scale: float
    magnitude: StoredTensor | None = None  # of DoRA
    bias: StoredTensor | None = None

    @property
    def r(self) -> int:
        return self.B.shape[1]


@dataclass(frozen=True)
class Adapter:
    """What `folder` holds. Module names are transformers'; tensors are read when they are needed."""

    folder: Path
    base: str  # the base model that the configuration names
    lora: dict[str, LoraModule]
    replaced: dict[str, StoredTensor]  # by the name of the tensor that it takes the place of
    tokens: dict[str, tuple[list[int], StoredTensor]]  # rows of a module's embedding, by module
    fan_in_fan_out: bool  # of square weights, whose shape does not tell
    bytes: int = field(default=0)

    def modules(self) -> Iterator[LoraModule]:
        yield from self.lora.values()

    def kind_problems(self, for_: str) -> list[str]:
        """Why this adapter cannot become a `lora-gguf`; empty if it can. Everything else can be made of any adapter."""
        if for_ != "lora-gguf":
            return []
        problems = []
        if any(module.magnitude for module in self.modules()):
            problems.append("DoRA rescales the base's own weights")
        if any(module.bias for module in self.modules()):
            problems.append("it has trained biases")
        if self.replaced:
            problems.append(f"it holds whole trained tensors ({', '.join(sorted(self.replaced)[:3])})")
        if self.tokens:
            problems.append("it has trained token embeddings")
        return problems


def open_adapter(folder: str, *, numbers: bool = True) -> Adapter:
    """Raises UserInputError: [INPUT_ADAPTER_INVALID] for files that are missing, damaged or without usable numbers,
    [INPUT_ADAPTER_UNSUPPORTED] for an adapter that cannot be read here.

    The files are held against the training's manifest, where one lies beside them: no proof can see a damage that the
    reference and the export have both read.

    numbers: reads all of it, to refuse numbers that are not finite.
    """
    path = Path(folder)
    check_whole(path)
    config, raw = _config(path)
    _refuse_foreign(path, config, raw)
    tensors = _tensors(path)
    for tensor in tensors.values():
        _check_numbers(path, tensor, values=numbers)
    parts: dict[str, dict[str, StoredTensor]] = {}
    replaced: dict[str, StoredTensor] = {}
    trained: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        name = name.removeprefix(_PREFIX)
        match = _LORA.match(name)
        if match:
            parts.setdefault(match["module"], {})[match["part"].removesuffix(".weight")] = tensor
        elif name.endswith(_TOKENS):
            trained[name.removesuffix(_TOKENS)] = tensor
        elif "lora_" in name.rpartition(".")[2] or ".lora_" in name:
            raise _unsupported(path, f"it holds {name}, of a kind that is not known here")
        else:
            target = name.replace(".base_layer.", ".")
            if target in replaced:
                raise _unsupported(path, f"it holds {target} twice")
            replaced[target] = tensor
    return Adapter(
        folder=path,
        base=config.base_model_name_or_path or "",
        lora={name: _module(path, config, name, found) for name, found in parts.items()},
        replaced=replaced,
        tokens={name: (_indices(path, config, name, tensor), tensor) for name, tensor in trained.items()},
        fan_in_fan_out=config.fan_in_fan_out,
        bytes=sum(tensor.bytes for tensor in tensors.values()),
    )


def as_float(tensor: StoredTensor) -> NDArray[np.float32]:
    """All of it, in the shape that it has: a view where it is stored as float32."""
    stored = tensor.read()
    if tensor.dtype == "F32":
        return stored.view(np.float32).reshape(tensor.shape)
    out = np.empty(stored.shape, np.float32)
    widen(stored, tensor.dtype, out)
    return out.reshape(tensor.shape)


def _unsupported(path: Path, why: str, suggestion: str = _MERGE_YOURSELF) -> UserInputError:
    return UserInputError(
        f"the adapter in {path} cannot be used: {why}", code="INPUT_ADAPTER_UNSUPPORTED", suggestion=suggestion
    )


def _invalid(path: Path, why: str, suggestion: str | None = None) -> UserInputError:
    return UserInputError(
        f"the adapter in {path} cannot be used: {why}", code="INPUT_ADAPTER_INVALID", suggestion=suggestion
    )


def _config(path: Path) -> tuple[_Config, dict[str, object]]:
    try:
        content = (path / CONFIG).read_bytes()
        return msgspec.json.decode(content, type=_Config), msgspec.json.decode(content, type=dict[str, object])
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _invalid(path, f"there is no {CONFIG}") from error
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise _invalid(path, f"its {CONFIG} cannot be read: {error}") from error


def _refuse_foreign(path: Path, config: _Config, raw: dict[str, object]) -> None:
    if config.peft_type.upper() != "LORA":
        raise _unsupported(
            path, f"it is of the kind {config.peft_type or 'unknown'}, and only LoRA adapters are known here"
        )
    for key, label in _FOREIGN:
        if raw.get(key):
            raise _unsupported(path, f"{label} cannot be merged here")
    init = str(config.init_lora_weights).lower()
    if init.startswith(_CHANGES_BASE) or init == "mica":
        raise _unsupported(
            path,
            f"it began with {config.init_lora_weights}, which changed the base model",
            "Save it from PEFT as a plain LoRA: save_pretrained(…, path_initial_model_for_weight_conversion=…).",
        )


def _tensors(path: Path) -> dict[str, StoredTensor]:
    try:
        tensors = TensorFile(path / WEIGHTS).tensors
    except FileNotFoundError as error:
        if (path / "adapter_model.bin").is_file():
            raise _unsupported(
                path,
                "its weights are pickled, which is not safe to read",
                "Load it with PEFT once and save it again: that writes safetensors.",
            ) from error
        raise _invalid(path, f"there is no {WEIGHTS}") from error
    except BadTensorFile as error:
        raise _invalid(path, f"{WEIGHTS} is damaged: {error}") from error
    if not tensors:
        raise _invalid(path, f"{WEIGHTS} holds no tensor")
    return tensors


def _check_numbers(path: Path, tensor: StoredTensor, *, values: bool) -> None:
    if tensor.dtype not in FLOATS:
        raise _unsupported(path, f"{tensor.name} is stored as {tensor.dtype}; known are {', '.join(FLOATS)}")
    if not values:
        return
    rows = max(1, (1 << 18) // max(1, tensor.row_size))
    for start in range(0, tensor.rows, rows):
        stored = tensor.read(start, min(start + rows, tensor.rows))
        wide = np.empty(stored.shape, np.float32)
        widen(stored, tensor.dtype, wide)
        if not np.isfinite(wide).all():
            raise _invalid(path, f"{tensor.name} in {WEIGHTS} holds NaN or infinite numbers", _DIVERGED)
        if ".lora_" in tensor.name and not np.abs(wide, out=wide).max(initial=0) <= _LARGEST:
            raise _invalid(path, f"{tensor.name} in {WEIGHTS} holds numbers beyond all measure", _DIVERGED)


def _module(path: Path, config: _Config, name: str, found: dict[str, StoredTensor]) -> LoraModule:
    kind: Literal["linear", "embedding"] = "embedding" if "lora_embedding_A" in found else "linear"
    names = ("lora_embedding_A", "lora_embedding_B") if kind == "embedding" else ("lora_A", "lora_B")
    extra = {"lora_magnitude_vector"} | ({"lora_B.bias"} if kind == "linear" else set())
    if not set(names) <= set(found) or not set(found) <= set(names) | extra:
        raise _unsupported(path, f"the tensors of {name} do not belong together: {', '.join(sorted(found))}")
    a, b, magnitude = found[names[0]], found[names[1]], found.get("lora_magnitude_vector")
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        raise _unsupported(path, f"the tensors of {name} do not fit each other: {a.shape} and {b.shape}")
    if (magnitude is not None) != config.use_dora:
        raise _unsupported(path, f"its {CONFIG} and its tensors disagree on whether {name} has DoRA")
    if a.shape[0] != _of_pattern(config.rank_pattern, name, config.r):
        raise _unsupported(path, f"its {CONFIG} and its tensors disagree on the rank of {name}")
    return LoraModule(name, kind, a, b, _scale(config, name), magnitude, found.get("lora_B.bias"))


def _scale(config: _Config, name: str) -> float:
    alpha = _of_pattern(config.alpha_pattern, name, config.lora_alpha)
    r = _of_pattern(config.rank_pattern, name, config.r)
    return alpha / math.sqrt(r) if config.use_rslora else alpha / r


def _of_pattern(patterns: dict[str, float] | None, name: str, default: float) -> float:
    """As PEFT finds it: the first pattern that matches the name, or what is left of it after a dot."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default


def _indices(path: Path, config: _Config, module: str, tensor: StoredTensor) -> list[int]:
    told = config.trainable_token_indices
    if isinstance(told, dict):
        told = next((rows for name, rows in told.items() if _ends_with(module, [name])), None)
    if told is None or len(told) != tensor.rows or len(set(told)) != len(told) or min(told, default=0) < 0:
        raise _unsupported(path, f"its {CONFIG} does not say which tokens {tensor.name} holds")
    return told


def _ends_with(module: str, names: Iterable[str]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)
