"""A new folder or file in the place of an older one: whoever looks sees one of them whole, or for an instant none.

No rename replaces a folder, so the older one steps aside first, as `.NAME.old.partial`. A crash in between leaves it
there: `settle` gives it its name back.
"""

from __future__ import annotations

from pathlib import Path

from backpropagate_protocol import durable
from backpropagate_protocol.durable import Disk
from backpropagate_protocol.rundir import PARTIAL


def rename_over(source: Path, target: Path, disk: Disk = durable.DISK) -> None:
    """Gives `source`, which lies on the same disk, the name `target`, durably. Raises OSError; the older one then stands."""
    old = _aside(target)
    if target.exists() and (target.is_dir() or source.is_dir()):
        durable.discard(old, disk)
        durable.rename(target, old, disk)
    try:
        durable.rename(source, target, disk)
    except OSError:
        if old.exists():
            durable.rename(old, target, disk)
        raise
    disk.sync_dir(target.parent)
    durable.discard(old, disk)


def settle(target: Path) -> None:
    """Ends a swap that was cut off: the older one comes back if it has no successor yet. Raises OSError."""
    old = _aside(target)
    if old.exists() and not target.exists():
        durable.rename(old, target)
    durable.discard(old)


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.old{PARTIAL}")
