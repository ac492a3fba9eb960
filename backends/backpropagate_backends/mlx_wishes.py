"""What a Job may ask of the MLX backend, checked before anything is loaded."""

from __future__ import annotations

from backpropagate_backends.schedules import POLYNOMIAL_END
from backpropagate_protocol.errors import InvalidSettingError
from backpropagate_protocol.jobs import TrainJob
from backpropagate_protocol.mlx_rules import refused_by_mlx


def check_wishes(job: TrainJob) -> None:
    """Raises InvalidSettingError for the first wish that cannot be granted."""
    spec = job.spec
    wish = refused_by_mlx(spec)
    if wish:
        raise InvalidSettingError(f"MLX cannot serve {wish}", suggestion="Leave it out, or use --backend cpu.")
    if job.micro_batch < 1 or job.micro_batch * job.accumulation != spec.train.effective_batch:
        raise InvalidSettingError(
            f"micro-batch {job.micro_batch} x accumulation {job.accumulation} is not the effective batch "
            f"{spec.train.effective_batch}"
        )
    if spec.train.steps is not None and spec.train.steps < 1:
        raise InvalidSettingError(f"steps must be at least 1, not {spec.train.steps}")
    if spec.train.epochs is not None and spec.train.epochs <= 0:
        raise InvalidSettingError(f"epochs must be more than 0, not {spec.train.epochs}")
    if spec.train.scheduler == "polynomial" and not spec.train.learning_rate > POLYNOMIAL_END:
        raise InvalidSettingError(
            f"the polynomial schedule ends at {POLYNOMIAL_END:g}, and the learning rate {spec.train.learning_rate:g} is no more",
            suggestion="Choose a higher learning rate, or another schedule.",
        )
    if spec.lora.r < 1:
        raise InvalidSettingError(f"the LoRA rank must be at least 1, not {spec.lora.r}")
