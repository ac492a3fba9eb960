"""How a child says that a planned fault comes now: a Notice, so that the journal knows when it struck."""

from __future__ import annotations

import re

_ANNOUNCED = re.compile(r"planned fault (?P<where>.+): (?P<kind>\w+)")


def announcement(where: str, kind: str) -> str:
    """`where`: as in `before step 12`."""
    return f"planned fault {where}: {kind}"


def announced(text: str) -> str | None:
    """The kind of the planned fault that a Notice speaks of; None for any other."""
    match = _ANNOUNCED.fullmatch(text)
    return match["kind"] if match else None
