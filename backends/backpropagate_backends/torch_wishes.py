"""What a Job may ask of the torch backends, checked before anything is loaded."""

from __future__ import annotations

from importlib.util import find_spec

from transformers import SchedulerType

from backpropagate_backends.torch_preference_wishes import check_preference
from backpropagate_protocol.errors import InvalidSettingError
from backpropagate_protocol.jobs import TrainJob
from backpropagate_protocol.spec import LoraSpec, TrainSpec

# Others need arguments of their own, or an evaluation that a run does not have.
_SCHEDULERS = (
    SchedulerType.LINEAR,
    SchedulerType.COSINE,
    SchedulerType.COSINE_WITH_RESTARTS,
    SchedulerType.CONSTANT,
    SchedulerType.CONSTANT_WITH_WARMUP,
    SchedulerType.POLYNOMIAL,
    SchedulerType.INVERSE_SQRT,
)

# Others need packages or arguments of their own.
_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop")
_OPTIMIZERS_OF_BITSANDBYTES = (
    "adamw_8bit",
    "adamw_bnb_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "lion_8bit",
    "lion_32bit",
    "paged_lion_8bit",
    "paged_lion_32bit",
)

# PiSSA, OLoRA and their kin change the base weights: such an adapter means nothing without that very base.
_INITS = ("default", "gaussian")


def check_wishes(job: TrainJob) -> None:
    """Raises InvalidSettingError for the first wish that cannot be granted."""
    train, lora = job.spec.train, job.spec.lora
    check_preference(job)
    check_mode(job)
    if job.micro_batch < 1 or job.micro_batch * job.accumulation != train.effective_batch:
        raise InvalidSettingError(
            f"micro-batch {job.micro_batch} x accumulation {job.accumulation} is not the effective batch "
            f"{train.effective_batch}"
        )
    _check_training(train)
    _check_lora(lora)


def needs_bitsandbytes(optimizer: str) -> bool:
    return optimizer in _OPTIMIZERS_OF_BITSANDBYTES


def _check_training(train: TrainSpec) -> None:
    if train.steps is not None and train.steps < 1:
        raise InvalidSettingError(f"steps must be at least 1, not {train.steps}")
    if train.epochs is not None and train.epochs <= 0:
        raise InvalidSettingError(f"epochs must be more than 0, not {train.epochs}")
    if train.optim != "auto" and train.optim not in _OPTIMIZERS and not needs_bitsandbytes(train.optim):
        raise InvalidSettingError(
            f"there is no optimizer {train.optim!r}; choose auto, which takes one that fits the device, or one of "
            + ", ".join((*_OPTIMIZERS, *_OPTIMIZERS_OF_BITSANDBYTES))
        )
    if needs_bitsandbytes(train.optim) and find_spec("bitsandbytes") is None:
        raise InvalidSettingError(
            f"the optimizer {train.optim} needs bitsandbytes, which is not installed",
            suggestion="pip install bitsandbytes, or leave --optim to auto.",
        )
    if train.scheduler not in list(_SCHEDULERS):
        raise InvalidSettingError(
            f"there is no scheduler {train.scheduler!r}; choose {', '.join(s.value for s in _SCHEDULERS)}"
        )


def _check_lora(lora: LoraSpec) -> None:
    if lora.r < 1:
        raise InvalidSettingError(f"the LoRA rank must be at least 1, not {lora.r}")
    if not lora.targets:
        raise InvalidSettingError("the adapter has no target modules; `all-linear` takes every linear layer")
    if "all-linear" in lora.targets and len(lora.targets) > 1:
        raise InvalidSettingError("`all-linear` already takes every linear layer; name it alone")
    if "lm_head" in lora.targets:
        raise InvalidSettingError(
            "the output head (lm_head) cannot carry an adapter: TRL's fused loss would not train it"
        )
    if lora.init not in _INITS:
        raise InvalidSettingError(
            f"the adapter's init {lora.init!r} is not in this release; choose {', '.join(_INITS)}"
        )


def check_mode(job: TrainJob) -> None:
    """Raises InvalidSettingError for a mode that there is not, or that does not go with the rest."""
    train = job.spec.train
    if train.mode not in ("lora", "full"):
        raise InvalidSettingError(f"there is no mode {train.mode!r}; choose lora or full")
    for wish, asked in (("mode full", train.mode == "full"), ("fp8", train.fp8)):
        if asked and train.method != "sft":
            raise InvalidSettingError(f"{wish} goes with the method sft only, not with {train.method}")
    if train.fp8 and train.mode == "full":
        raise InvalidSettingError("fp8 multiplies by frozen weights, and mode full freezes none; choose one of them")
    if train.fp8 and job.spec.lora.use_dora:
        raise InvalidSettingError(
            "fp8 does not go with DoRA, which multiplies by the weights once more; choose one of them"
        )
    if train.mode == "full" and job.spec.init_adapter is not None:
        raise InvalidSettingError("mode full has no adapter, and so cannot begin from one")
