"""An estimate for whoever asks: from settings, with the card that is there or one that is named."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict

import msgspec

from backpropagate.doors.environ import environment
from backpropagate.gpu_safety import GPUStatus, get_gpu_status
from backpropagate.judge.estimate import MIB, Estimate, Gpu, Measured, Range, Rows
from backpropagate.keep import calibrations, locks
from backpropagate.wishes.build_spec import hypothetical_spec
from backpropagate.wishes.estimating import told
from backpropagate.wishes.settings import Settings
from backpropagate_protocol.errors import InvalidSettingError, UserInputError
from backpropagate_protocol.spec import RunSpec

_ON_CARD = ("auto", "cuda")
_LEAST_GB, _MOST_GB = 0.5, 1e5


def estimated(
    settings: Settings, *, gpu: str | None = None, vram_gb: float | None = None, calibrate: bool = False
) -> tuple[RunSpec, Estimate]:
    """gpu: the name of a card; vram_gb: its memory. None: the card of this machine, if there is one.

    calibrate: real steps first, in a child; blocks, and must be in the main thread then. Raises a coded error for wrong wishes,
    for a base of which nothing is known, and for what keeps the real steps from being made.
    """
    spec = hypothetical_spec(settings)
    _check_card(spec, gpu, vram_gb)
    status = get_gpu_status() if vram_gb is None and spec.backend in _ON_CARD else None
    card = Gpu(gpu or "a card", round(vram_gb * 1024)) if vram_gb is not None else _card(status)
    before = told(spec, card, environment())
    if not calibrate:
        return spec, before
    if vram_gb is not None:
        raise UserInputError("real steps can only be made on the card that is here", suggestion="Leave out --gpu and --vram-gb.")  # fmt: skip
    if not spec.data.source:
        raise UserInputError("real steps need real rows", suggestion="Name the training data with --data.")
    with ExitStack() as held:
        if status is not None:  # beside a training, both would be short of memory
            held.enter_context(
                locks.hold(locks.gpu_lock(status.uuid), "calibration", f"the GPU {status.name}", patience=0.0)
            )
        return _after_real_steps(spec, before)


def _check_card(spec: RunSpec, gpu: str | None, vram_gb: float | None) -> None:
    if spec.backend == "mlx":
        raise UserInputError(
            "what a training takes on MLX is not known", suggestion="Leave --backend out to be told of a CUDA card."
        )
    for flag, value in {"gpu": gpu, "vram_gb": vram_gb}.items():
        if value is not None and spec.backend not in _ON_CARD:
            raise InvalidSettingError(
                f"{flag} would have no effect: the backend {spec.backend} uses no card", suggestion="Leave it out."
            )
    if gpu is not None and vram_gb is None:
        raise UserInputError(f"how much memory the card {gpu} has was not said", suggestion="Add --vram-gb.")
    number = isinstance(vram_gb, int | float) and not isinstance(vram_gb, bool)
    if vram_gb is not None and not (number and _LEAST_GB <= vram_gb < _MOST_GB):
        raise InvalidSettingError(
            f"vram_gb: {vram_gb!r} is no card's memory", suggestion="Give a number of GB, such as 16."
        )


def _after_real_steps(spec: RunSpec, before: Estimate) -> tuple[RunSpec, Estimate]:
    from backpropagate.doors.calibrating import calibrated

    found = calibrated(spec, before.micro_batch)
    measured = Measured(
        micro_batch=found.micro_batch,
        peak=found.memory_peak * MIB,
        longest=found.longest,
        tokens_per_second=found.tokens_per_second,
    )
    if before.gpu is not None and found.memory_peak:
        calibrations.remember(before.gpu.name, spec, measured)
    rows = Rows(found.rows, Range(found.mean_tokens, found.mean_tokens))
    if found.device == "cpu":  # what `auto` came to
        spec = msgspec.structs.replace(spec, backend="cpu")
    return spec, told(spec, before.gpu, environment(), measured=measured, rows=rows)


def _card(status: GPUStatus | None) -> Gpu | None:
    if status is None:
        return None
    return Gpu(status.name, status.memory_total, status.memory_used, status.power_limit)


def document(spec: RunSpec, found: Estimate) -> dict[str, object]:
    """As `--json` prints it. Bytes, seconds, watt-hours."""
    told = asdict(found)
    told["memory"] |= {"activations": found.memory.activations, "held": found.memory.held, "peak": found.memory.peak}
    told["disk"]["total"] = found.disk.total
    setup = told.pop("setup")
    told["setup"] = {name: setup[name] for name in ("four_bit", "checkpointing", "bytes_per_weight", "state", "fp8")}
    return {"model": spec.model.name, **told}
