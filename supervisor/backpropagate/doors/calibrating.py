"""A child that trains a few real steps, and with a smaller batch once more if they do not fit."""

from __future__ import annotations

import tempfile
from collections.abc import Callable

from backpropagate.doors.oneshot import run_job
from backpropagate.judge.halving import halved, least_batch
from backpropagate_protocol.errors import BackpropagateError
from backpropagate_protocol.jobs import CalibrateJob
from backpropagate_protocol.measured import Calibrated
from backpropagate_protocol.messages import ToParent
from backpropagate_protocol.spec import RunSpec

_STEP = 120.0  # seconds that a step on the longest rows may take
_OUT_OF_MEMORY = "RUNTIME_GPU_OOM"


def calibrated(
    spec: RunSpec,
    micro_batch: int,
    *,
    steps: int = 10,
    kernels: tuple[str, ...] = (),
    on_message: Callable[[ToParent], None] | None = None,
) -> Calibrated:
    """What the steps took, with the largest micro-batch by halving that fits. Blocks; call it in the main thread.

    A child that takes longer than loading, a first step and the others may take in all is ended.

    Raises the coded error of the child's fault: RUNTIME_GPU_OOM if not even the smallest fits.
    """
    safety = spec.safety
    deadline = safety.load_deadline + safety.first_step_deadline + steps * max(safety.hang_floor, _STEP)
    while True:
        with tempfile.TemporaryDirectory(prefix="backpropagate-", ignore_cleanup_errors=True) as scratch:
            job = CalibrateJob(spec=spec, micro_batch=micro_batch, scratch=scratch, steps=steps, kernels=kernels)
            try:
                return run_job(
                    job,
                    Calibrated,
                    backend=spec.backend,
                    runner_python=spec.runner_python,
                    on_message=on_message,
                    deadline=deadline,
                )
            except BackpropagateError as error:
                smaller = halved(micro_batch, spec.train.effective_batch, least_batch(spec.train.method))
                if error.code != _OUT_OF_MEMORY or smaller is None:
                    raise
                micro_batch = smaller
