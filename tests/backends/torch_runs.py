"""Whole runs of the cpu backend in one call, and the comparisons that the exactness tests make."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from backpropagate_backends.cpu import CpuBackend
from backpropagate_backends.torch_backend import TorchBackend
from backpropagate_protocol.jobs import TrainJob
from backpropagate_protocol.messages import TrainResult
from backpropagate_protocol.prepared import Prepared
from tests.backends.torch_session import KeepingSession, make_job

# Third parties' words to each other: PEFT 0.21 asks transformers 5.23 by a name that goes in v6.
FOREIGN_WARNINGS = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@dataclass(frozen=True)
class Run:
    """A run that was made, and what its session kept."""

    session: KeepingSession
    result: TrainResult | None

    @property
    def done(self) -> TrainResult:
        assert self.result is not None
        return self.result

    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(Path(self.done.adapter) / "adapter_model.safetensors")

    def orders(self) -> dict[int, int]:
        """step → order after it."""
        return {progress.step: progress.order for progress in self.session.progress}

    def losses(self) -> dict[int, float | None]:
        return {progress.step: progress.loss for progress in self.session.progress}


def run(
    backend: TorchBackend,
    job: TrainJob,
    data: Prepared,
    folder: Path,
    *,
    save_at: Iterable[int] = (),
    stop_at: int | None = None,
    kill_before: int | None = None,
    on_step: Callable[[int], None] = lambda step: None,
    short_at: Iterable[tuple[str, int, int]] = (),
) -> Run:
    session = KeepingSession(
        job, folder, data, save_at=save_at, stop_at=stop_at, kill_before=kill_before, on_step=on_step, short_at=short_at
    )
    return Run(session, backend.train(session, data))


def halved(job: TrainJob, times: int = 1) -> TrainJob:
    factor = 2**times
    return msgspec.structs.replace(job, micro_batch=job.micro_batch // factor, accumulation=job.accumulation * factor)


def resumed(job: TrainJob, checkpoint: Path) -> TrainJob:
    return msgspec.structs.replace(job, resume_from=str(checkpoint), attempt=job.attempt + 1)


def distance(one: Run, other: Run) -> float:
    """The largest difference of any weight."""
    left, right = one.weights(), other.weights()
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


if __name__ == "__main__":  # resumes one checkpoint in a process of its own, and prints the digest of the result
    _model, _data, _checkpoint, _folder = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    _backend = CpuBackend()
    _backend.warm()
    print(run(_backend, resumed(make_job(_model), _checkpoint), Prepared(_data), _folder).done.digest)
