"""What Linux says of any process: whether it still runs, and to which group it belongs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Standing:
    """`runs`: False for a zombie, which nobody has fetched yet."""

    runs: bool
    group: int


def standing(pid: int) -> Standing | None:
    """None: there is no such process, or it ended while we looked."""
    try:
        said = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        state, _, group = said.rpartition(")")[2].split()[:3]  # a program's name, in brackets, may hold anything
    except (OSError, ValueError):
        return None
    return Standing(state not in "ZX", int(group))
