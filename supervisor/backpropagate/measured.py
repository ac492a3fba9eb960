"""What was measured, as a line of `events.jsonl` carries it: named fields, where the protocol's are an array."""

from __future__ import annotations

import msgspec


class Check(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of a proof, as in the protocol's message."""

    name: str
    passed: bool
    value: float | None = None
    bound: float | None = None
    detail: str = ""


class LinkScore(msgspec.Struct, frozen=True):
    """One candidate on the held-out rows of one task, as in the protocol's message."""

    candidate: str  # merged, newest, base
    task: int  # from 0
    loss: float
    accuracy: float
    tokens: int
    rows: int
