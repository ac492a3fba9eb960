"""The checkpoint folders of a run directory, by name and by manifest."""

from __future__ import annotations

import msgspec

from backpropagate_protocol import durable
from backpropagate_protocol.durable import NotWhole
from backpropagate_protocol.rundir import MANIFEST, PARTIAL, Manifest, RunDir, checkpoint_step


def steps(run_dir: RunDir) -> list[int]:
    """The steps of all checkpoint folders by name, oldest first; whether they are good is not looked at."""
    try:
        found = [checkpoint_step(entry.name) for entry in run_dir.checkpoints.iterdir() if entry.is_dir()]
    except FileNotFoundError:
        return []
    return sorted(step for step in found if step is not None)


def manifests(run_dir: RunDir) -> list[Manifest]:
    """Of all checkpoints that have a readable one of their own, oldest first; contents are not verified."""
    found = []
    for step in steps(run_dir):
        try:
            manifest = msgspec.json.decode((run_dir.checkpoint(step) / MANIFEST).read_bytes(), type=Manifest)
        except (OSError, msgspec.DecodeError):
            continue
        if (manifest.step, manifest.run_id) == (step, run_dir.run_id):
            found.append(manifest)
    return found


def whole(run_dir: RunDir, step: int) -> bool | None:
    """Whether every byte is what was committed; None if the disk does not let it be read now. Takes as long as the disk does."""
    try:
        manifest = durable.verify_dir(run_dir.checkpoint(step))
    except NotWhole:
        return False
    except OSError:
        return None
    return (manifest.step, manifest.run_id) == (step, run_dir.run_id)


def remove(run_dir: RunDir, step: int) -> bool:
    """Removes a checkpoint; False if that cannot be done now.

    Renamed first: a removal that is cut short must not leave half a checkpoint under a checkpoint's name.
    """
    doomed = run_dir.checkpoint(step)
    grave = doomed.with_name(f"{doomed.name}.old{PARTIAL}")
    durable.discard(grave)
    try:
        durable.rename(doomed, grave)
    except OSError:
        return False
    durable.discard(grave)
    return True
