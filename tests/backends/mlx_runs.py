"""Whole runs of the mlx backend in this process: real mlx-lm on MLX's CPU build, the tiny model of the torch tests."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from backpropagate_backends.mlx_backend import MlxBackend
from backpropagate_protocol.jobs import TrainJob
from backpropagate_protocol.messages import TrainResult
from backpropagate_protocol.prepared import Prepared
from tests.backends.torch_session import KeepingSession, make_job


def mlx_job(model: Path, **changes: object) -> TrainJob:
    """A Job as for the torch backends, for MLX."""
    job = make_job(model, **changes)  # type: ignore[arg-type]
    return msgspec.structs.replace(job, spec=msgspec.structs.replace(job.spec, backend="mlx"))


def run(job: TrainJob, data: Prepared, folder: Path, **session: object) -> tuple[KeepingSession, TrainResult | None]:
    kept = KeepingSession(job, folder, data, **session)  # type: ignore[arg-type]
    return kept, MlxBackend().train(kept, data)


def weights(result: TrainResult | None) -> dict[str, NDArray[np.float32]]:
    assert result is not None
    return load_file(Path(result.adapter) / "adapter_model.safetensors")
