"""What a campaign has on the disk besides its result: merges, believed as far as their digests reach, and what is to spare."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from backpropagate.judge.campaign import RULES, Facts, campaign_dir, link_dir, wishes
from backpropagate.keep import checkpoint_folders, checkpoint_register
from backpropagate.keep.campaign_adapter import combined
from backpropagate_protocol import durable
from backpropagate_protocol.combined import COMBINED
from backpropagate_protocol.durable import NotWhole
from backpropagate_protocol.rundir import RunDir
from backpropagate_protocol.spec import RunSpec


def readable(folder: Path) -> bool:
    """Whether the merge says of itself what it is."""
    try:
        combined(folder)
    except (OSError, ValueError):
        return False
    return True


def whole(folder: Path, below: str) -> bool:
    """Whether every file below this part of the merge is as it was written. Reads all of them; raises OSError if that cannot
    be done now."""
    try:
        files = combined(folder).files
        wanted = {name: sha for name, sha in files.items() if name.startswith(f"{below}/")}
        return bool(wanted) and all(durable.file_entry(folder / name).sha256 == sha for name, sha in wanted.items())
    except (FileNotFoundError, ValueError):
        return False


def thin(spec: RunSpec, facts: Facts) -> None:
    """Removes what nothing is made of any more, and what can be made again if it should be; what does not go stays.

    A finished run is never resumed: of it its adapter is kept, once it was read and is whole, and checkpoints that are
    protected. Of a merge, once the next one is made, only what it says of itself is. Of `auto`'s rules the one that was taken.
    """
    home = campaign_dir(spec)
    for number in facts.trained:
        with suppress(OSError, ValueError):
            _without_checkpoints(home, link_dir(spec, number))
    for number, merge in facts.merged.items():
        taken = Path(merge.folder)
        if merge.chosen:
            for other in (home.merge_by(number, rule) for rule in RULES):
                if other != taken:
                    durable.discard(other)
        if number + 1 in facts.merged and _scored(spec, facts, number):
            for folder in {taken, home.merge(number)}:
                _without_weights(folder)


def _scored(spec: RunSpec, facts: Facts, number: int) -> bool:
    """Whether nobody will ask any more what this merge answers."""
    return number in facts.scored or not wishes(spec).evaluate or facts.links[number - 1].data.holdout == 0


def _without_checkpoints(home: RunDir, run: RunDir) -> None:
    steps = checkpoint_folders.steps(run)
    if not steps:
        return
    try:
        if durable.verify_dir(run.adapter).run_id != run.run_id:
            return
    except NotWhole:
        return
    said = checkpoint_register.read(home) | checkpoint_register.read(run)
    for step in steps:
        known = said.get((run.run_id, step))
        if known is None or not known.protected:
            checkpoint_folders.remove(run, step)


def _without_weights(folder: Path) -> None:
    with suppress(OSError):
        for entry in folder.iterdir():
            if entry.name != COMBINED:
                durable.discard(entry)
