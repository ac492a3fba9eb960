"""Checkpoints as the parent sees them: find the newest that verifies, put what does not verify aside, keep the best."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from backpropagate.judge.decisions import Found
from backpropagate.keep import results
from backpropagate_protocol import durable
from backpropagate_protocol.durable import NotWhole
from backpropagate_protocol.rundir import MANIFEST, PARTIAL, QUARANTINE, Manifest, RunDir, checkpoint_step


@dataclass(frozen=True, slots=True)
class Search:
    """What a search came to: the newest good checkpoint, and what had to be put aside: (name, reason).

    unreadable: why the search had to be broken off; then nothing is known of what follows in age, and `found` is None.
    """

    found: Found | None
    aside: tuple[tuple[str, str], ...] = ()
    unreadable: str = ""


def steps(run_dir: RunDir) -> list[int]:
    """The steps of all checkpoint folders by name, oldest first; whether they are good is not looked at."""
    try:
        found = [checkpoint_step(entry.name) for entry in run_dir.checkpoints.iterdir() if entry.is_dir()]
    except FileNotFoundError:
        return []
    return sorted(step for step in found if step is not None)


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
        results.recover(run_dir.output)
    for folder in (run_dir.checkpoints, run_dir.path, run_dir.output.cache):
        with suppress(OSError):
            for entry in folder.iterdir():
                if entry.name.endswith(PARTIAL) or (entry.name.startswith(".") and entry.name.endswith(".tmp")):
                    durable.discard(entry)


class CheckpointPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What `CheckpointManager.prune` keeps: the best by loss, the newest, and never fewer than one."""

    keep_best_n: int = 3
    keep_final: bool = True


@dataclass
class CheckpointManager:
    """The checkpoints of one run directory, for programs. Raises OSError where the disk does."""

    run_dir: Path
    policy: CheckpointPolicy = field(default_factory=CheckpointPolicy)

    def list(self) -> Sequence[Manifest]:
        """The manifests of all checkpoints that have a readable one, oldest first; contents are not verified."""
        run = RunDir(self.run_dir)
        found = []
        for step in steps(run):
            try:
                found.append(msgspec.json.decode((run.checkpoint(step) / MANIFEST).read_bytes(), type=Manifest))
            except (OSError, msgspec.DecodeError):
                continue
        return found

    def final(self) -> Manifest | None:
        """The newest."""
        return next(reversed(self.list()), None)

    def best(self) -> Manifest | None:
        """The one with the lowest loss; the newest if none has a loss."""
        ranked = self._ranked()
        return ranked[0] if ranked else self.final()

    def path(self, manifest: Manifest) -> Path:
        return RunDir(self.run_dir).checkpoint(manifest.step)

    def verify(self, manifest: Manifest) -> bool:
        """Whether every byte is what was committed."""
        try:
            durable.verify_dir(self.path(manifest))
        except NotWhole:
            return False
        return True

    def prune(self, *, dry_run: bool = False) -> Sequence[Path]:
        """Removes what the policy does not keep, oldest first; returns the folders. Not while the run is running."""
        manifests = self.list()
        keep = {manifest.step for manifest in self._ranked()[: self.policy.keep_best_n]}
        if manifests and (self.policy.keep_final or not keep):
            keep.add(manifests[-1].step)
        gone = [self.path(manifest) for manifest in manifests if manifest.step not in keep]
        if not dry_run:
            for folder in gone:
                durable.discard(folder)
        return gone

    def _ranked(self) -> Sequence[Manifest]:
        return sorted((m for m in self.list() if m.loss is not None), key=lambda m: (m.loss or 0.0, -m.step))
