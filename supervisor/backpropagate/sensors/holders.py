"""Who else holds memory of the run's card, from what its sensors list."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

_NAMED = 3


class Holder(msgspec.Struct, frozen=True):
    """A process that computes on the card. MiB; 0 where the driver does not say."""

    pid: int
    name: str
    memory: int


def others(holders: Sequence[Holder], child: int | None) -> Sequence[Holder] | None:
    """Those that are not the child's; None where they cannot be told apart.

    In a container the driver may know our child by a number that means nothing here: then one of those listed is the child.
    """
    if child is None:
        return holders
    rest = [holder for holder in holders if holder.pid != child]
    return rest if len(rest) < len(holders) or not holders else None


def in_words(holders: Sequence[Holder]) -> str:
    """The largest of them, for people."""
    largest = sorted(holders, key=lambda holder: -holder.memory)
    named = [f"{holder.name or 'a process'} (pid {holder.pid}, {holder.memory:,} MiB)" for holder in largest[:_NAMED]]
    more = f" and {len(largest) - _NAMED} more" if len(largest) > _NAMED else ""
    return ", ".join(named) + more
