"""What a preference method can be asked for together with, checked before anything is loaded."""

from __future__ import annotations

from backpropagate_backends.torch_preference_loss import METHODS, preference_of
from backpropagate_protocol.errors import InvalidSettingError
from backpropagate_protocol.jobs import TrainJob


def check_preference(job: TrainJob) -> None:
    """Raises InvalidSettingError for a method that there is not, or that does not go with the rest."""
    train, data = job.spec.train, job.spec.data
    if train.method == "sft":
        return
    preference = preference_of(train)
    if preference is None:
        raise InvalidSettingError(f"there is no method {train.method!r}; choose sft, {', '.join(METHODS)}")
    if train.mode != "lora":
        raise InvalidSettingError(
            f"method {train.method} trains adapters only, not mode {train.mode}", suggestion="Leave --mode at lora."
        )
    if data.packing:
        raise InvalidSettingError(
            f"packing goes with the method sft only, not with {train.method}", suggestion="Leave out --packing."
        )
    if job.spec.init_adapter is not None and preference.has_reference:
        raise InvalidSettingError(
            f"method {train.method} holds the model to its base, so it cannot begin from an adapter",
            suggestion="Merge the adapter into the base first (`backprop export`), or choose orpo or simpo.",
        )
    if not preference.beta > 0:
        raise InvalidSettingError(f"the beta of {train.method} must be more than 0, not {preference.beta}")
    if not preference.gamma >= 0:
        raise InvalidSettingError(f"the gamma of {train.method} must be at least 0, not {preference.gamma}")
    if not min(preference.desirable, preference.undesirable) > 0:
        raise InvalidSettingError("the weights of good and of bad answers must be more than 0")
    if train.method == "kto" and min(train.effective_batch, job.micro_batch) < 2:
        raise InvalidSettingError(
            "method kto compares each answer with another one's, so a batch needs at least 2 rows",
            suggestion="Raise --batch-size or --gradient-accumulation.",
        )
