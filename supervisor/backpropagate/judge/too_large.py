"""Whether a training is begun on a card at all: refused where it cannot fit, doubted where it may not. Pure.

What is refused needs more than the card has, whatever the rows are: the weights and all that belongs to them. Everything else is
tried, since a batch that does not fit is halved.
"""

from __future__ import annotations

import sys

from backpropagate.judge.estimate import MIB, Gpu, Sizing
from backpropagate_protocol.catalogue import ExitCode
from backpropagate_protocol.errors import BackpropagateError, error_for


def refusal(sizing: Sizing, gpu: Gpu) -> BackpropagateError | None:
    """RUNTIME_GPU_OOM before anything is loaded; None where there is a doubt that it would come to that."""
    needed = sizing.impossible(gpu.total)
    if needed is None or sys.platform == "win32":  # there the driver lends the host's memory, slow as it is
        return None
    spec = sizing.spec
    savings = ["a smaller model"]
    savings += ["a smaller --lora-r"] if spec.train.mode != "full" else ["--mode lora"]
    savings += ["--load-in-4bit"] if spec.train.mode != "full" and not sizing.setup(1).four_bit else []
    return error_for(
        "RUNTIME_GPU_OOM",
        f"training {spec.model.name} takes at least {needed.low / MIB / 1024:.1f} GB, and the {gpu.name} has "
        f"{gpu.total / 1024:.1f} GB",
        suggestion=f"Use {' or '.join(savings)}; `backprop estimate` takes the same flags and says what fits.",
        run_id=spec.run_id,
        exit_code=ExitCode.USER_ERROR,
    )


def doubt(sizing: Sizing, gpu: Gpu, micro_batch: int) -> str:
    """What the user should know of a batch that may not fit; empty if it surely does."""
    if sizing.surely_fits(micro_batch, gpu.free):
        return ""
    span, moved = sizing.vram(micro_batch), sizing.movable
    low, high = ((bound - moved) / MIB / 1024 for bound in (span.low, span.high))
    return (
        f"a micro-batch of {micro_batch}, with rows of up to {sizing.spec.data.max_length} tokens, may take {low:.1f} to "
        f"{high:.1f} GB, and the {gpu.name} has {gpu.free / 1024:.1f} GB free; if it does not fit, it is halved"
    )
