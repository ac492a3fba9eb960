"""What a preference method can be asked for together with, checked before anything is loaded."""

from __future__ import annotations

from backpropagate_protocol.errors import InvalidSettingError
from backpropagate_protocol.jobs import TrainJob

_PAIRS = ("orpo", "simpo", "dpo")
METHODS = ("sft", *_PAIRS, "kto")


def check_preference(job: TrainJob) -> None:
    """Raises InvalidSettingError for a method that there is not, or that does not go with the rest."""
    train, data = job.spec.train, job.spec.data
    if train.method not in METHODS:
        raise InvalidSettingError(f"there is no method {train.method!r}; choose {', '.join(METHODS)}")
    if train.method == "sft":
        return
    if train.mode != "lora":
        raise InvalidSettingError(
            f"method {train.method} trains adapters only, not mode {train.mode}", suggestion="Leave --mode at lora."
        )
    if data.packing:
        raise InvalidSettingError(
            f"packing goes with the method sft only, not with {train.method}", suggestion="Leave out --packing."
        )
    if job.spec.init_adapter is not None and train.method in ("dpo", "kto"):
        raise InvalidSettingError(
            f"method {train.method} holds the model to its base, so it cannot begin from an adapter",
            suggestion="Merge the adapter into the base first (`backprop export`), or choose orpo or simpo.",
        )
    for name, value in (("beta", train.beta), ("gamma", train.gamma)):
        if value is not None and not value >= (0 if name == "gamma" else 1e-12):
            raise InvalidSettingError(f"the {name} of {train.method} must be more than 0, not {value}")
    if min(train.desirable_weight, train.undesirable_weight) <= 0:
        raise InvalidSettingError("the weights of good and of bad answers must be more than 0")
    if train.method == "kto" and min(train.effective_batch, job.micro_batch) < 2:
        raise InvalidSettingError(
            "method kto compares each answer with another one's, so a batch needs at least 2 rows",
            suggestion="Raise --batch-size or --gradient-accumulation.",
        )
