"""Does a checkpoint belong to the run that is to go on with it? The part of the answer that no framework changes."""

from __future__ import annotations

from pathlib import Path

from backpropagate_backends.course import Course
from backpropagate_protocol.errors import CheckpointError, UserInputError
from backpropagate_protocol.jobs import TrainJob
from backpropagate_protocol.rundir import Manifest
from backpropagate_protocol.spec import spec_digest


def check_same_run(job: TrainJob, manifest: Manifest, data_digest: str, backend: str, course: Course) -> None:
    """Raises UserInputError [STATE_RUN_MISMATCH] for other data, other settings or another backend, CheckpointError for a
    position that no run of this length and batch can have."""
    folder = Path(job.resume_from or "")
    if manifest.backend != backend:
        raise UserInputError(
            f"{folder.name} was trained on {manifest.backend}; on {backend} it would go on in another precision",
            code="STATE_RUN_MISMATCH",
            suggestion=f"Resume where --backend {manifest.backend} works, or start a new run.",
        )
    if manifest.data_digest != data_digest:
        raise UserInputError(f"{folder.name} was trained on other data", code="STATE_RUN_MISMATCH")
    if manifest.spec_digest != spec_digest(job.spec):
        raise UserInputError(f"{folder.name} was trained with other settings", code="STATE_RUN_MISMATCH")
    if manifest.micro_batch * manifest.accumulation != course.effective_batch:
        raise UserInputError(f"{folder.name} was trained with another effective batch", code="STATE_RUN_MISMATCH")
    expected = course.samples_at(manifest.step)
    if manifest.samples_seen != expected:
        raise CheckpointError(
            f"{folder.name} has seen {manifest.samples_seen} samples; after step {manifest.step} it must be {expected}"
        )
