"""CheckpointManager: the checkpoints of a run, or of all runs of a campaign, for programs that want to look or make room.

1. What cannot be spared is never removed: the newest checkpoint that verifies, of the whole and of every run that is not
   finished, and what came after it; the best one of such a run, if its held-out rows are scored; what is protected; and
   anything at all while a supervisor works in the output folder.
2. Nothing is removed that is not known: folders without a readable manifest, half-made and quarantined ones stay.
3. `prune(dry_run=True)` tells what `prune()` would remove, by the same reasons.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from backpropagate.judge import campaign
from backpropagate.keep import checkpoint_folders, checkpoint_register, journal, locks, runs
from backpropagate.keep.checkpoint_register import Registered
from backpropagate_protocol.campaign_report import NEWEST
from backpropagate_protocol.errors import CheckpointError, RunNotFoundError
from backpropagate_protocol.rundir import Manifest, RunDir, checkpoint_step


class CheckpointPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What `prune` keeps beside what cannot be spared.

    keep_best_n            so many with the lowest validation loss; where none has one, with the lowest training loss
    keep_final             the newest
    keep_run_boundaries    the last one of every finished run
    """

    keep_best_n: int = 3
    keep_final: bool = True
    keep_run_boundaries: bool = False


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One checkpoint. Losses are nats per token; None: not known. `link`: which run of a campaign, from 1; 0: of none."""

    run_id: str
    link: int
    step: int
    path: Path
    bytes: int
    loss: float | None  # of the training, at this step
    validation_loss: float | None
    run_boundary: bool  # its run ended with it
    protected: bool
    created: str  # ISO 8601, UTC


@dataclass(frozen=True, slots=True)
class CheckpointStats:
    """What there is: how many, how large together, the best and the newest."""

    count: int
    bytes: int
    best: Checkpoint | None
    newest: Checkpoint | None
    protected: int
    validated: int  # have a validation loss


@dataclass(frozen=True, slots=True)
class _Member:
    """A run whose checkpoints these are."""

    run: RunDir
    link: int
    finished: bool
    validation_loss: float | None  # of what it ended with


@dataclass
class CheckpointManager:
    """The checkpoints below a run directory: `CheckpointManager(Path("output/runs/<run-id>"))`.

    For a campaign these are the checkpoints of all its runs, wherever in the output folder they lie. Raises OSError where the
    disk does, and CheckpointError for a register that cannot be read.
    """

    run_dir: Path
    policy: CheckpointPolicy = field(default_factory=CheckpointPolicy)

    def list(self) -> Sequence[Checkpoint]:
        """All that have a readable manifest, oldest first; contents are not verified (see `verify`)."""
        said = self._register()
        return [each for member in self._members() for each in _listed(member, said)]

    def final(self) -> Checkpoint | None:
        """The newest."""
        return next(reversed(self.list()), None)

    def best(self) -> Checkpoint | None:
        """The one with the lowest loss, as `CheckpointPolicy` ranks them; the newest if none has a loss."""
        found = self.list()
        ranked = _ranked(found)
        return ranked[0] if ranked else next(reversed(found), None)

    def path(self, checkpoint: Checkpoint) -> Path:
        """Its folder."""
        return checkpoint.path

    def verify(self, checkpoint: Checkpoint) -> bool:
        """Whether every byte is what was committed. Reads all of it; raises OSError if that cannot be done now."""
        whole = checkpoint_folders.whole(_run_of(checkpoint), checkpoint.step)
        if whole is None:
            raise OSError(f"{checkpoint.path} cannot be read")
        return whole

    def stats(self) -> CheckpointStats:
        """Counts and sums over `list()`."""
        found = self.list()
        ranked = _ranked(found)
        newest = found[-1] if found else None
        return CheckpointStats(
            count=len(found),
            bytes=sum(each.bytes for each in found),
            best=ranked[0] if ranked else newest,
            newest=newest,
            protected=sum(each.protected for each in found),
            validated=sum(each.validation_loss is not None for each in found),
        )

    def register(
        self,
        checkpoint: Checkpoint | Path,
        *,
        validation_loss: float | None = None,
        run_boundary: bool | None = None,
        protected: bool | None = None,
    ) -> Checkpoint:
        """Notes what a checkpoint's own manifest cannot know, and returns it as it is known now. None changes nothing.

        checkpoint: one of `list()`, or its folder. validation_loss: nats per token. run_boundary: a run ended with it.
        protected: no `prune` removes it, whatever the policy says. Kept in `checkpoints.json`; not to be called by two
        programs at once. Raises CheckpointError for what is none of these checkpoints.
        """
        wanted = Path(checkpoint if isinstance(checkpoint, Path) else checkpoint.path).resolve()
        found = self.list()
        this = next((each for each in found if each.path.resolve() == wanted), None)
        if this is None:
            raise CheckpointError(
                f"{wanted} is no checkpoint of {self.run_dir}", suggestion="`list()` has those that there are."
            )
        said = self._register()
        key = (this.run_id, this.step)
        old = said.get(key) or Registered(run_id=this.run_id, step=this.step)
        new = msgspec.structs.replace(
            old,
            validation_loss=old.validation_loss if validation_loss is None else _finite(validation_loss),
            run_boundary=old.run_boundary if run_boundary is None else run_boundary,
            protected=old.protected if protected is None else protected,
        )
        there = {(each.run_id, each.step) for each in found}
        checkpoint_register.write(
            RunDir(self.run_dir), [new, *(each for k, each in said.items() if k != key and k in there)]
        )
        return next(each for each in self.list() if (each.run_id, each.step) == key)

    def prune(self, *, dry_run: bool = False) -> Sequence[Path]:
        """Removes what the policy does not keep and what can be spared, oldest first; returns the folders.

        Reads the newest checkpoint of every unfinished run whole, to be sure that it is good. Raises BusyError while a
        supervisor works in the output folder, except for a dry run.
        """
        if dry_run:
            return [each.path for each in self._spared()]
        output = RunDir(self.run_dir.absolute()).output
        with locks.hold(output.lock, self.run_dir.name, f"the output folder {output.path}"):
            return [each.path for each in self._spared() if checkpoint_folders.remove(_run_of(each), each.step)]

    def _spared(self) -> Sequence[Checkpoint]:
        """Those that may go."""
        found = self.list()
        keep = {each.path for each in found if each.protected}
        keep |= {each.path for each in _ranked(found)[: max(0, self.policy.keep_best_n)]}
        if self.policy.keep_final and found:
            keep.add(found[-1].path)
        if self.policy.keep_run_boundaries:
            keep |= {each.path for each in found if each.run_boundary}
        if all(each.path in keep for each in found):
            return []
        keep |= set(_last_good(found))
        for member in self._members():
            if not member.finished:
                own = [each for each in found if each.run_id == member.run.run_id]
                keep |= set(_last_good(own))
                keep |= set(_bests([each for each in own if each.path in keep], member.run))
        return [each for each in found if each.path not in keep]

    def _members(self) -> Sequence[_Member]:
        run = RunDir(self.run_dir.absolute())
        try:
            spec = runs.load_spec(run)
        except RunNotFoundError:
            return [_Member(run, 0, False, None)]
        if spec.campaign is None:
            return [_Member(run, spec.link, False, None)]
        facts = campaign.Facts.of(spec)
        for event in journal.read(run.events):
            facts.event(event)
        members = []
        for link in facts.links:
            own = run.output.run(campaign.link_id(spec.run_id, link.number))
            scored = facts.scored.get(link.number)
            losses = [score.loss for score in scored.scores if score.candidate == NEWEST] if scored else []
            validation = _finite(math.fsum(losses) / len(losses)) if losses else None
            members.append(_Member(own, link.number, link.number in facts.trained, validation))
        return members

    def _register(self) -> dict[tuple[str, int], Registered]:
        try:
            return checkpoint_register.read(RunDir(self.run_dir))
        except ValueError as error:
            raise CheckpointError(
                str(error), suggestion="Mend the file, or remove it: then nothing is protected."
            ) from error


def _listed(member: _Member, said: dict[tuple[str, int], Registered]) -> Iterator[Checkpoint]:
    found = checkpoint_folders.manifests(member.run)
    for manifest in found:
        known = said.get((manifest.run_id, manifest.step)) or Registered(run_id=manifest.run_id, step=manifest.step)
        last = member.finished and manifest is found[-1]
        boundary = last or manifest.step == manifest.total_steps
        validation = known.validation_loss
        if validation is None and manifest.standing is not None and manifest.standing.step == manifest.step:
            validation = manifest.standing.loss
        if validation is None and last:
            validation = member.validation_loss  # the campaign scored what this run ended with
        yield Checkpoint(
            run_id=manifest.run_id,
            link=member.link,
            step=manifest.step,
            path=member.run.checkpoint(manifest.step),
            bytes=_size(manifest),
            loss=manifest.loss if manifest.loss is None else _finite(manifest.loss),
            validation_loss=validation,
            run_boundary=boundary if known.run_boundary is None else known.run_boundary,
            protected=known.protected,
            created=manifest.created,
        )


def _ranked(found: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The best first, of equals the newer. One without the loss that the others are ranked by has no rank."""
    validated = any(each.validation_loss is not None for each in found)

    def loss(each: Checkpoint) -> float | None:
        return each.validation_loss if validated else each.loss

    newest_first = [each for each in reversed(found) if loss(each) is not None]
    return sorted(newest_first, key=lambda each: loss(each) or 0.0)


def _last_good(found: Sequence[Checkpoint]) -> Iterator[Path]:
    """The newest that verifies, and those after it: a resume puts them aside, or could read them another day. All of them if
    none verifies."""
    for each in reversed(found):
        yield each.path
        if checkpoint_folders.whole(_run_of(each), each.step):
            return


def _bests(kept: Sequence[Checkpoint], run: RunDir) -> Iterator[Path]:
    """For each of these the one that had the best held-out loss by then: the result may be made of it."""
    steps = {each.step for each in kept}
    for manifest in checkpoint_folders.manifests(run):
        if manifest.step in steps and manifest.standing is not None and manifest.standing.best_step:
            yield run.checkpoint(manifest.standing.best_step)


def _run_of(checkpoint: Checkpoint) -> RunDir:
    assert checkpoint_step(checkpoint.path.name) == checkpoint.step
    return RunDir(checkpoint.path.parent.parent)


def _size(manifest: Manifest) -> int:
    return sum(entry.size for entry in manifest.files.values())


def _finite(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None
