"""Checkpoints of a run on disk: committing one, removing old ones, and opening the one to resume from."""

from __future__ import annotations

import uuid
from pathlib import Path

import msgspec

from backpropagate_protocol.durable import DISK, Disk, NotWhole, commit_dir, discard, rename, verify_dir
from backpropagate_protocol.errors import CheckpointError, DiskFullError, error_for
from backpropagate_protocol.jobs import TrainJob
from backpropagate_protocol.rundir import MANIFEST, PARTIAL, QUARANTINE, FileEntry, Manifest, RunDir, checkpoint_step
from backpropagate_protocol.spec import spec_digest


def commit(staged: Path, final: Path, manifest: Manifest, disk: Disk = DISK) -> tuple[int, dict[str, FileEntry]]:
    """Makes the folder `staged` the checkpoint (or result) `final`, whole or not at all; returns bytes and files.

    Raises OSError if the disk does not take it; then nothing of it is left.
    """
    listed: dict[str, FileEntry] = {}

    def with_files(files: dict[str, FileEntry]) -> bytes:
        listed.update(files)
        return msgspec.json.encode(msgspec.structs.replace(manifest, files=files))

    return commit_dir(staged, final, with_files, disk), listed


def make_room(final: Path, manifest: Manifest, disk: Disk = DISK) -> bool:
    """Before a commit to a name that is taken. True: what lies there is this very checkpoint, nothing is to be done.

    Otherwise it is moved aside, not removed: a step is only ever trained twice after something went wrong.
    """
    if not final.exists():
        return False
    try:
        found = verify_dir(final)
        if (found.order, found.samples_seen, found.spec_digest) == (
            manifest.order,
            manifest.samples_seen,
            manifest.spec_digest,
        ):
            return True
    except NotWhole:
        pass
    rename(final, final.with_name(f"{final.name}{QUARANTINE}-{uuid.uuid4().hex[:8]}"), disk)
    return False


def prune(run: RunDir, newest: int, keep: int, disk: Disk = DISK, *, best: bool = False) -> None:
    """Removes all but the `keep` newest checkpoints; the one of step `newest`, just committed, always stays.

    best: and for each that stays the one that was the best by then, so that a run that has to go on from it still has it.
    Only folders with a checkpoint's name are looked at: partial, quarantined and foreign ones are not ours to remove.
    What cannot be removed now is looked at again after the next save: it is no reason to end a training.
    """
    try:
        names = [folder.name for folder in run.checkpoints.iterdir()]
    except OSError:
        return
    steps = sorted(step for name in names if (step := checkpoint_step(name)) is not None and step != newest)
    older = len(steps) - (max(1, keep) - 1)
    stay = {_best_by(run, step) for step in (*steps[max(0, older) :], newest)} if best else set()
    for step in steps[: max(0, older)]:
        if step in stay:
            continue
        doomed = run.checkpoint(step)
        # Renamed first: a removal that is cut short must not leave half a checkpoint under a checkpoint's name.
        grave = doomed.with_name(f"{doomed.name}.old{PARTIAL}")
        try:
            rename(doomed, grave, disk)
        except OSError:
            continue
        discard(grave, disk)


def _best_by(run: RunDir, step: int) -> int:
    """The step whose weights were the best when that of `step` was made; 0 if none was, or if it cannot be told."""
    try:
        manifest = msgspec.json.decode((run.checkpoint(step) / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError):
        return 0
    return manifest.standing.best_step if manifest.standing is not None else 0


def open_resume(job: TrainJob) -> Manifest | None:
    """The manifest of the checkpoint the Job names, its every byte verified, and that it belongs to this run."""
    if job.resume_from is None:
        return None
    folder = Path(job.resume_from)
    try:
        manifest = verify_dir(folder)
    except NotWhole as error:
        raise CheckpointError(f"the checkpoint {folder.name} cannot be used: {error}") from error
    except OSError as error:
        # It may be as good as ever: nobody should put it aside for what the disk or the system did.
        raise DiskFullError(
            f"the checkpoint {folder.name} cannot be read: {error.strerror or error}",
            suggestion="Look after the output disk, then `backprop resume RUN`.",
        ) from error
    if manifest.spec_digest != spec_digest(job.spec):
        raise error_for("STATE_RUN_MISMATCH", f"{folder.name} was made with another model, data or training settings")
    return manifest


def check_data(resume: Manifest | None, digest: str) -> None:
    """A resumed run must see exactly the rows that it began with."""
    if resume is not None and resume.data_digest != digest:
        raise error_for(
            "STATE_RUN_MISMATCH", f"the prepared data are not those of the checkpoint of step {resume.step}"
        )
