"""Loading the base model and putting the adapter on it: precision, 4-bit weights, 8-bit products, LoRA."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from backpropagate_backends.model_source import Source
from backpropagate_backends.torch_fp8 import check_fp8, multiply_in_fp8
from backpropagate_protocol.errors import InvalidSettingError, ModelLoadError
from backpropagate_protocol.spec import LoraSpec, ModelSpec, TrainSpec

Notice = Callable[[str, str], None]  # text, level

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}


_LAYOUT = "support_avx512bf16_for_cpu"

# How a label says what is not plain.
NF4, FP8 = "nf4", "fp8"

# The eyes and ears of a model that has some: text never reaches them, so adapters there would only be carried along.
_SENSES = r".*(vision|visual|audio|multi_modal|image).*"


@dataclass(frozen=True, slots=True)
class Precision:
    """How weights are held and what the arithmetic is done in. Adapters are always float32.

    fp8: the matrix products of the base are made in 8-bit floats, the weights stay in `dtype`.
    """

    device: Literal["cpu", "cuda"]
    dtype: torch.dtype
    four_bit: bool
    fp8: bool = False

    @property
    def label(self) -> str:
        name = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[self.dtype]
        return f"{NF4}+{name}" if self.four_bit else f"{FP8}+{name}" if self.fp8 else name

    @property
    def place(self) -> str:
        return "cuda:0" if self.device == "cuda" else "cpu"


def choose_precision(
    model: ModelSpec, device: Literal["cpu", "cuda"], notice: Notice, train: TrainSpec | None = None
) -> Precision:
    """Auto is bf16 on CUDA from Ampere on and fp16 before, fp32 on the CPU; 4-bit on CUDA where bitsandbytes is there.

    train: what is asked of a training, which 4-bit weights or fp16 may not be able to do; None: nothing is trained.
    Raises InvalidSettingError for a dtype that is unknown or that the device cannot train in, for 4-bit weights that were
    asked for without bitsandbytes, and for what does not go together.
    """
    full, fp8 = train is not None and train.mode == "full", train is not None and train.fp8
    dtype = _dtype(model, device, full)
    if fp8:
        check_fp8(device)
        if dtype is not torch.bfloat16:
            raise InvalidSettingError("--fp8 multiplies what is held in bf16", suggestion="Leave --dtype to auto.")
    installed = find_spec("bitsandbytes") is not None
    if model.load_in_4bit and (full or fp8):
        what = "full fine-tuning cannot train 4-bit weights" if full else "--fp8 has no use for 4-bit weights"
        raise InvalidSettingError(what, suggestion="Leave --load-in-4bit out.")
    if model.load_in_4bit and not installed:
        raise InvalidSettingError(
            "4-bit weights were asked for, and bitsandbytes is not installed",
            suggestion="pip install bitsandbytes, or leave load_in_4bit to auto.",
        )
    four_bit = model.load_in_4bit
    if four_bit is None:
        wanted = device == "cuda" and not full and not fp8
        four_bit = wanted and installed
        if wanted and not installed:
            notice("bitsandbytes is not installed: the weights are held in 16 bits instead of 4", "warning")
    return Precision(device, dtype, four_bit, fp8)


def _dtype(model: ModelSpec, device: Literal["cpu", "cuda"], full: bool) -> torch.dtype:
    if model.dtype != "auto" and model.dtype not in _DTYPES:
        raise InvalidSettingError(f"there is no dtype {model.dtype!r}; choose auto, bf16, fp16 or fp32")
    if model.dtype != "auto":
        dtype = _DTYPES[model.dtype]
        if device == "cpu" and dtype is torch.float16:
            raise InvalidSettingError("the CPU cannot train in fp16; choose auto, bf16 or fp32")
        if full and dtype is torch.float16:
            raise InvalidSettingError(
                "full fine-tuning in fp16 would lose its gradients; choose auto, bf16 or fp32",
                suggestion="Leave --dtype to auto.",
            )
        return dtype
    if device == "cpu":
        return torch.float32
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    # An adapter is float32 beside fp16 weights; weights that are themselves trained have nothing beside them.
    return torch.float32 if full else torch.float16


def load_model(
    source: Source, precision: Precision, tokenizer: PreTrainedTokenizerBase, notice: Notice
) -> PreTrainedModel:
    """The base model on its device. Raises ModelLoadError; running out of memory stays what it is."""
    options = source.options()
    quantization = None
    if precision.four_bit:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=precision.dtype,
        )
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            source.path,
            dtype=precision.dtype,
            device_map={"": precision.place},
            quantization_config=quantization,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, KeyError, ImportError, AttributeError, SafetensorError) as error:
        raise source.failure(error) from error
    if report["missing_keys"]:
        some = ", ".join(sorted(report["missing_keys"])[:3])
        notice(f"{source.name} lacks {len(report['missing_keys'])} weights, which start at random: {some}", "warning")
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ModelLoadError(f"the tokenizer of {source.name} has {len(tokenizer)} tokens and the model {rows}")
    if precision.fp8:
        multiply_in_fp8(model)
    if precision.four_bit:
        _keep_layout(model)
    return model


def _keep_layout(model: PreTrainedModel) -> None:
    """On some CPUs bitsandbytes lays 4-bit weights out anew at the first look at them without a gradient, and cannot train
    them any more: whoever scores a model in the middle of its training would end it."""
    for module in model.modules():
        if hasattr(module, _LAYOUT):
            setattr(module, _LAYOUT, False)


def add_adapter(model: PreTrainedModel, lora: LoraSpec, seed: int) -> PeftModel:
    """LoRA on `model`, float32, the same initial weights for the same seed. Raises InvalidSettingError."""
    targets = lora.targets[0] if lora.targets == ("all-linear",) else list(lora.targets)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        exclude_modules=_SENSES if _has_senses(model) else None,
        use_dora=lora.use_dora,
        use_rslora=lora.use_rslora,
        init_lora_weights=True if lora.init == "default" else lora.init,
    )
    set_seed(seed)  # adapters begin at random
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise InvalidSettingError(f"the adapter does not fit {model.name_or_path}: {error}") from error


def train_all(model: PreTrainedModel) -> PreTrainedModel:
    """Every weight that text reaches is trained. No adapter."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(re.fullmatch(_SENSES, name) is None)
    return model


def _has_senses(model: PreTrainedModel) -> bool:
    linear = (name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    return any(re.fullmatch(_SENSES, name) for name in linear)


def all_finite(model: PreTrainedModel | PeftModel) -> bool:
    """False if a trained weight is NaN or infinite."""
    return all(bool(torch.isfinite(p).all()) for p in model.parameters() if p.requires_grad)
