"""Checkpoints as the parent sees them: find the newest that verifies, put what does not verify aside, sweep up.

For programs there are CheckpointManager and CheckpointPolicy.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from backpropagate.judge.decisions import Found
from backpropagate.keep import results
from backpropagate.keep.checkpoint_folders import steps
from backpropagate.keep.checkpoint_manager import Checkpoint, CheckpointManager, CheckpointPolicy, CheckpointStats
from backpropagate_protocol import durable, swap
from backpropagate_protocol.durable import NotWhole
from backpropagate_protocol.rundir import PARTIAL, QUARANTINE, Manifest, RunDir

__all__ = [
    "Checkpoint",
    "CheckpointManager",
    "CheckpointPolicy",
    "CheckpointStats",
    "Search",
    "newest_good",
    "quarantine",
    "steps",
    "sweep",
]


@dataclass(frozen=True, slots=True)
class Search:
    """What a search came to: the newest good checkpoint, and what had to be put aside: (name, reason).

    unreadable: why the search had to be broken off; then nothing is known of what follows in age, and `found` is None.
    """

    found: Found | None
    aside: tuple[tuple[str, str], ...] = ()
    unreadable: str = ""


def newest_good(run_dir: RunDir) -> Search:
    """Reads every byte of the newest checkpoint, and of older ones until one verifies. Takes as long as the disk does.

    Only what was read and is wrong is put aside. What the disk does not give at this moment may be the best there is: it
    is neither renamed nor passed over, and the search says so.
    """
    aside: list[tuple[str, str]] = []
    try:
        return _newest_good(run_dir, aside)
    except OSError as error:
        return Search(None, tuple(aside), f"{error.filename or run_dir.checkpoints}: {error.strerror or error}")


def _newest_good(run_dir: RunDir, aside: list[tuple[str, str]]) -> Search:
    for step in reversed(steps(run_dir)):
        folder = run_dir.checkpoint(step)
        try:
            manifest = durable.verify_dir(folder)
            if manifest.step != step:
                raise NotWhole(f"its manifest is that of step {manifest.step}")
            if manifest.run_id != run_dir.run_id:
                raise NotWhole(f"it belongs to run {manifest.run_id}")
        except NotWhole as problem:
            aside.append((folder.name, str(problem)))
            quarantine(run_dir, folder.name)
            continue
        return Search(_found(folder.name, manifest), tuple(aside))
    return Search(None, tuple(aside))


def _found(name: str, manifest: Manifest) -> Found:
    return Found(name, manifest.step, manifest.samples_seen, manifest.order, manifest.total_steps, manifest.loss)


def quarantine(run_dir: RunDir, name: str) -> Path | None:
    """Renames a checkpoint so that nobody takes it for one; it is never deleted. None if that cannot be done."""
    folder = run_dir.checkpoints / name
    for number in range(1000):
        target = folder.with_name(f"{name}{QUARANTINE}" + (f"-{number}" if number else ""))
        if target.exists():
            continue
        try:
            durable.rename(folder, target)
        except OSError:
            return None
        return target
    return None


def sweep(run_dir: RunDir) -> None:
    """Removes what a killed child or supervisor left half-made; what cannot be removed now is left for the next sweep.

    Only while nobody else is at work in the folder.
    """
    durable.discard(run_dir.staging)
    with suppress(OSError):
        swap.settle(run_dir.adapter)  # before what stepped aside for it is taken for half-made
    with suppress(OSError):
        results.recover(run_dir.output)
    for folder in (run_dir.checkpoints, run_dir.path, run_dir.output.cache):
        with suppress(OSError):
            for entry in folder.iterdir():
                if entry.name.endswith(PARTIAL) or (entry.name.startswith(".") and entry.name.endswith(".tmp")):
                    durable.discard(entry)
