"""Wishes that do not go together: each one alone is fine, and with the others it could not take effect, so it is refused.

What a flag of the command line (or an argument of `Trainer`) would be ignored for is an error; a value from a file or a variable
was meant for other trainings, too, and is passed over where it does not apply.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from backpropagate.judge.shape import parameters
from backpropagate.wishes.base_config import config_of
from backpropagate.wishes.models import SAMPLE, TINY
from backpropagate.wishes.settings import Settings
from backpropagate_protocol.errors import InvalidSettingError, error_for
from backpropagate_protocol.spec import ModelSpec, TrainSpec


@dataclass(frozen=True, slots=True)
class _Needs:
    """These settings have an effect only where `holds`; `otherwise` says why, and `instead` what to do."""

    keys: tuple[str, ...]
    holds: Callable[[Settings], bool]
    otherwise: str
    instead: str


def _full(settings: Settings) -> bool:
    return settings.text("training.mode") == "full"


def _data_of_hub(settings: Settings) -> bool:
    source = settings.text_or_none("data.source")
    return source is None or not (source == SAMPLE or os.path.exists(os.path.expanduser(source)))


def _model_of_hub(settings: Settings) -> bool:
    name = settings.text("model.name")
    return name != TINY and not os.path.isdir(os.path.expanduser(name))


def _method(name: str) -> Callable[[Settings], bool]:
    return lambda settings: settings.text("training.method") == name


def _holds_out(settings: Settings) -> bool:
    return settings.number("data.eval_split") > 0


_OF_ADAPTERS = (
    "lora.preset", "lora.r", "lora.alpha", "lora.dropout", "lora.target_modules", "lora.use_dora", "lora.use_rslora",
    "lora.init_lora_weights",
)  # fmt: skip
_OF_METHODS = {
    "orpo": ("training.orpo_beta",),
    "simpo": ("training.simpo_beta", "training.simpo_gamma"),
    "dpo": ("training.dpo_beta",),
    "kto": ("training.kto_beta", "training.kto_desirable_weight", "training.kto_undesirable_weight"),
}
_NEEDS = (
    _Needs(("data.split",), _data_of_hub, "a file has no splits", "Leave it out, or name a file with those rows."),
    _Needs(
        ("model.revision",), _model_of_hub, "a folder has no revisions", "Leave it out, or name a model of the hub."
    ),
    _Needs(
        ("training.warmup_steps",),
        lambda s: s.text("training.scheduler") != "constant" or not s.whole("training.warmup_steps"),
        "a constant learning rate has no warm-up",
        "Use --scheduler constant_with_warmup, or leave it out.",
    ),
    _Needs(
        ("training.liger",),
        lambda s: s.text("training.backend") != "cpu",
        "Liger's kernels need a card, and the backend is cpu",
        "Leave it out.",
    ),
    _Needs(
        ("training.attention",),
        lambda s: s.text("training.backend") != "cpu" or not s.text("training.attention").startswith("flash"),
        "FlashAttention needs a card, and the backend is cpu",
        "Leave it out, or use --attention sdpa.",
    ),
    _Needs(_OF_ADAPTERS, lambda s: not _full(s), "mode full trains no adapter", "Leave it out, or use --mode lora."),
    _Needs(("training.full_ft_ceiling",), _full, "only mode full has a ceiling", "Leave it out, or use --mode full."),
    _Needs(
        ("training.eval_steps", "training.keep_best"),
        _holds_out,
        "no rows are held out",
        "Add --eval-split 0.1, or leave it out.",
    ),
    _Needs(
        ("training.early_stopping",),
        lambda s: _holds_out(s) or not s.whole("training.early_stopping"),
        "no rows are held out",
        "Add --eval-split 0.1, or leave it out.",
    ),
    _Needs(
        ("data.min_trace_tokens", "data.max_trace_tokens"),
        lambda s: s.flag("data.reasoning_trace"),
        "no reasoning traces are asked for",
        "Add --reasoning-trace, or leave it out.",
    ),
    *(
        _Needs(keys, _method(method), f"it belongs to the method {method}", f"Leave it out, or use --method {method}.")
        for method, keys in _OF_METHODS.items()
    ),
)


def check_together(settings: Settings) -> None:
    """Raises InvalidSettingError for the first wish that the others leave without effect."""
    for needs in _NEEDS:
        for key in needs.keys:
            setting = settings[key]
            # A switch that is off asks for nothing.
            if setting.given and setting.value is not False and not needs.holds(settings):
                raise InvalidSettingError(
                    f"{setting.option.flag} would have no effect: {needs.otherwise}", suggestion=needs.instead
                )
    if _full(settings):
        _check_full(settings)
    if settings.flag("training.fp8"):
        _check_fp8(settings)


def check_of_export(settings: Settings, said: Collection[str]) -> None:
    """Raises InvalidSettingError for what is said of an export by a training that ends with none.

    said: the arguments of this very call; what a `Trainer` was made with is for its later exports, too.
    """
    registered = settings["export.ollama_name"].given
    exported = registered or settings.text_or_none("export.after_training") is not None
    for key, holds, why, instead in (
        ("export.directory", exported, "nothing is exported", "--export q4_k_m"),
        ("export.llama_cpp_dir", exported, "nothing is exported", "--export q4_k_m"),
        ("export.ollama_host", registered, "nothing is registered with Ollama", "--ollama-name my-model"),
    ):
        if settings[key].option.argument in said and not holds:
            raise InvalidSettingError(
                f"{settings[key].option.flag} would have no effect: {why}",
                suggestion=f"Add {instead}, or leave it out.",
            )


def check_size(model: ModelSpec, train: TrainSpec, environ: Mapping[str, str]) -> None:
    """Raises ConfigurationError [RUNTIME_FULL_FT_MODEL_TOO_LARGE] for a model that is too large to be trained whole.

    Told from its config.json, where that is on this machine and says it for certain, or from what is known of a preset; else
    the child tells, before it loads the weights.
    """
    if train.mode != "full":
        return
    config = config_of(model, environ)
    count = parameters(config) if config is not None else None
    if count is not None and count > train.ceiling * 1e9:
        raise error_for(
            "RUNTIME_FULL_FT_MODEL_TOO_LARGE",
            f"{model.name} has {count / 1e9:.3g} billion parameters, and full fine-tuning takes at most "
            f"{train.ceiling:g} billion",
            suggestion="Use --mode lora, which trains models of this size in a fraction of the memory, choose a smaller "
            "model, or raise --full-ft-ceiling-billions if the card has the memory.",
        )


def _check_full(settings: Settings) -> None:
    method = settings.text("training.method")
    if settings.text("training.backend") == "toy":
        raise InvalidSettingError("the backend toy has no mode full", suggestion="Use --backend auto, cuda or cpu.")
    if method != "sft":
        raise InvalidSettingError(
            f"mode full trains by the method sft only, not by {method}", suggestion="Use --mode lora."
        )
    if settings.flag("model.load_in_4bit"):
        raise InvalidSettingError(
            "mode full cannot train 4-bit weights", suggestion="Leave --load-in-4bit out, or use --mode lora."
        )
    if settings.text("model.dtype") in ("fp16", "float16"):
        raise InvalidSettingError("mode full would lose its gradients in fp16", suggestion="Leave --dtype to auto.")


def _check_fp8(settings: Settings) -> None:
    without = "Leave --fp8 out."
    method, backend = settings.text("training.method"), settings.text("training.backend")
    if _full(settings):
        raise InvalidSettingError("fp8 multiplies by frozen weights, and mode full freezes none", suggestion=without)
    if method != "sft":
        raise InvalidSettingError(f"fp8 goes with the method sft only, not with {method}", suggestion=without)
    if settings.flag("model.load_in_4bit"):
        raise InvalidSettingError("fp8 has no use for 4-bit weights", suggestion="Leave one of the two out.")
    if settings.flag("lora.use_dora"):
        raise InvalidSettingError("fp8 does not go with DoRA", suggestion="Leave one of the two out.")
    if settings.text("model.dtype") not in ("auto", "bf16", "bfloat16"):
        raise InvalidSettingError("fp8 multiplies what is held in bf16", suggestion="Leave --dtype to auto.")
    if backend not in ("auto", "cuda"):
        raise InvalidSettingError(f"fp8 needs a CUDA card, and the backend is {backend}", suggestion=without)
