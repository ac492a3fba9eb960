"""What does not go with a preference method, refused before anything starts; the child asks the same again for itself."""

from __future__ import annotations

from backpropagate.judge.halving import least_batch
from backpropagate_protocol.errors import InvalidSettingError
from backpropagate_protocol.spec import DataSpec, TrainSpec

_WITHOUT = ("toy",)  # backends that know no preferences


def check_preferences(backend: str, data: DataSpec, train: TrainSpec) -> None:
    """Raises InvalidSettingError for the first wish that the method cannot serve."""
    method = train.method
    if method == "sft":
        return
    if backend in _WITHOUT:
        raise InvalidSettingError(
            f"the backend {backend} trains by the method sft only, not by {method}",
            suggestion="Use --backend auto, cuda or cpu.",
        )
    if data.packing:
        raise InvalidSettingError(
            f"the method {method} scores answers one by one, so nothing of it can be packed",
            suggestion="Leave --packing out.",
        )
    if data.train_on == "all":
        raise InvalidSettingError(
            f"the method {method} compares answers; what it learns from is not a choice",
            suggestion="Leave --train-on out.",
        )
    least = least_batch(method)
    if train.effective_batch < least or (train.batch_size is not None and train.batch_size < least):
        raise InvalidSettingError(
            f"the method {method} needs at least {least} rows in a batch",
            suggestion="Give --batch-size 2 or more; if --gradient-accumulation leaves only one row for each, lower it.",
        )
