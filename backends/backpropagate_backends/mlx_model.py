"""Loading a base model into MLX: where its files are, in which precision it is held, whether mlx-lm computes it rightly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from huggingface_hub import snapshot_download
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model

from backpropagate_backends.mlx_config import check_config, quantization, read_config, unsupported
from backpropagate_backends.mlx_warm import on_metal
from backpropagate_backends.model_source import Source
from backpropagate_backends.rope_styles import Config, both_styles
from backpropagate_protocol.errors import InvalidSettingError, UserInputError
from backpropagate_protocol.mlx_rules import CPU_DEVICE, METAL_DEVICE
from backpropagate_protocol.spec import ModelSpec

Notice = Callable[[str, str], None]  # text, level

_FILES = ("*.json", "model*.safetensors", "*.py", "tokenizer.model", "*.tiktoken", "*.txt", "*.jinja")
_DTYPES = {"bf16": mx.bfloat16, "bfloat16": mx.bfloat16, "fp32": mx.float32, "float32": mx.float32}
_LABELS = {mx.bfloat16: "bf16", mx.float32: "fp32"}
_GROUP, _BITS = 64, 4  # of weights that are quantised here; mlx-community's own choice


@dataclass(frozen=True, slots=True)
class Base:
    """A model that is loaded, frozen, and in evaluation mode. `precision`: fp32, bf16, or q4g64+bf16."""

    model: nn.Module
    config: Config  # as it is on the disk
    folder: Path
    precision: str
    quantised: bool  # on the disk, by MLX: transformers cannot read it
    stored: mx.Dtype  # of its files, for what is not packed into bits


def device_name() -> str:
    """`metal Apple M2 Max`; `mlx-cpu`; `mlx-gpu` for MLX's build for CUDA."""
    if on_metal():
        return f"{METAL_DEVICE} {mx.device_info().get('device_name', '')}".strip()
    return CPU_DEVICE if mx.default_device() == mx.cpu else "mlx-gpu"


def folder_of(source: Source) -> Path:
    """The model's files on this machine; those of the hub are fetched. Raises ModelLoadError."""
    folder = Path(source.path)
    if folder.is_dir():
        return folder
    try:
        found = snapshot_download(
            source.path, revision=source.revision, allow_patterns=list(_FILES), local_files_only=source.local
        )
    except Exception as error:
        raise source.failure(error) from error
    return Path(found)


def load_base(source: Source, model: ModelSpec, notice: Notice) -> Base:
    """Raises ModelLoadError, UserInputError [INPUT_MODEL_UNSUPPORTED] and InvalidSettingError; running out of memory stays
    what it is."""
    folder = folder_of(source)
    config = read_config(folder, source.name)
    check_config(config, source.name)
    stored = quantization(config)
    if stored is None and isinstance(config.get("quantization_config"), dict):
        raise unsupported(source.name, "it is quantised, and not by MLX")
    dtype = _DTYPES.get(model.dtype, mx.bfloat16 if on_metal() else mx.float32)
    if stored is not None and model.load_in_4bit is False:
        raise InvalidSettingError(
            f"{source.name} is stored in {stored['bits']} bits, and --no-load-in-4bit asks for full precision",
            suggestion="Name the model that it was quantised from.",
        )
    try:
        net, _ = load_model(
            folder,
            lazy=True,
            model_config=both_styles(config),
            trust_remote_code=source.trust_remote_code,
        )
    except (ValueError, KeyError, TypeError, OSError, IndexError, AttributeError) as error:
        if "not supported" in str(error):
            raise unsupported(source.name, str(error)) from error
        raise source.failure(error) from error
    own = _stored(net)
    if stored is not None:
        # The scales of older ones are fp16, which Metal would mix with bf16 to fp32. Rounded here for whoever loads it, so that
        # what is trained, asked, and fused in the end is one model.
        net.set_dtype(mx.bfloat16)
    net.set_dtype(dtype)
    label = _LABELS[dtype]
    if stored is not None:
        label = f"q{stored['bits']}g{stored.get('group_size', _GROUP)}+{label}"
    elif model.load_in_4bit:
        _quantise(net)
        label = f"q{_BITS}g{_GROUP}+{label}"
    net.freeze()
    net.eval()
    mx.eval(net.parameters())
    return Base(net, config, folder, label, stored is not None, own)


def check_same_precision(base: Base, begun: str) -> None:
    """Raises UserInputError [STATE_RUN_MISMATCH] if a run that began in the precision `begun` would go on in another."""
    if begun and begun != base.precision:
        raise UserInputError(
            f"the run was begun in {begun}, and here the model is held in {base.precision}",
            code="STATE_RUN_MISMATCH",
            suggestion="Resume on the kind of machine that it was begun on, or start a new run.",
        )


def parameters(net: nn.Module) -> int:
    """All of them, a quantised one counted as what it stands for."""
    from mlx_lm.utils import get_total_parameters

    return int(get_total_parameters(net))


def layers(net: nn.Module) -> list[nn.Module]:
    """The blocks of the text model."""
    found: list[nn.Module] = net.layers
    return found


def _stored(net: nn.Module) -> mx.Dtype:
    """The precision that most of the weights have which are numbers; of quantised ones, that of their scales."""
    found = [value.dtype for _, value in tree_flatten(net.parameters()) if mx.issubdtype(value.dtype, mx.floating)]
    return max(set(found), key=lambda kind: (found.count(kind), str(kind)), default=mx.bfloat16)


def _quantise(net: nn.Module) -> None:
    """Every matrix that can be cut into groups; in-memory only, what is on the disk stays in full precision."""

    def fits(_path: str, module: nn.Module) -> bool:
        return hasattr(module, "to_quantized") and module.weight.shape[-1] % _GROUP == 0

    nn.quantize(net, group_size=_GROUP, bits=_BITS, class_predicate=fits)
