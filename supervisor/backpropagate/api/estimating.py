"""An estimate for whoever asks: from settings, with the card that is there or one that is named."""

from __future__ import annotations

from dataclasses import asdict

from backpropagate.doors.environ import environment
from backpropagate.gpu_safety import get_gpu_status
from backpropagate.judge.estimate import MIB, Estimate, Gpu, Measured, Range, Rows
from backpropagate.wishes.build_spec import hypothetical_spec
from backpropagate.wishes.estimating import told
from backpropagate.wishes.settings import Settings
from backpropagate_protocol.errors import UserInputError
from backpropagate_protocol.spec import RunSpec


def estimated(
    settings: Settings, *, gpu: str | None = None, vram_gb: float | None = None, calibrate: bool = False
) -> tuple[RunSpec, Estimate]:
    """gpu: the name of a card; vram_gb: its memory. None: the card of this machine, if there is one.

    calibrate: real steps first, in a child; blocks, and must be in the main thread then. Raises a coded error for wrong wishes,
    for a base of which nothing is known, and for what keeps the real steps from being made.
    """
    spec = hypothetical_spec(settings)
    if gpu is not None and vram_gb is None:
        raise UserInputError(f"how much memory the card {gpu} has was not said", suggestion="Add --vram-gb.")
    card = Gpu(gpu or "a card", round(vram_gb * 1024)) if vram_gb is not None else _card(spec)
    before = told(spec, card, environment())
    if not calibrate:
        return spec, before
    if vram_gb is not None:
        raise UserInputError("real steps can only be made on the card that is here", suggestion="Leave out --gpu and --vram-gb.")  # fmt: skip
    if not spec.data.source:
        raise UserInputError("real steps need real rows", suggestion="Name the training data with --data.")
    return spec, _after_real_steps(spec, before)


def _after_real_steps(spec: RunSpec, before: Estimate) -> Estimate:
    from backpropagate.doors.calibrating import calibrated
    from backpropagate.keep import calibrations

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
    return told(spec, before.gpu, environment(), measured=measured, rows=rows)


def _card(spec: RunSpec) -> Gpu | None:
    if spec.backend not in ("auto", "cuda"):
        return None
    status = get_gpu_status()
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
