"""What every event tells: when it was, and of which run."""

from __future__ import annotations

import msgspec


class Told(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", omit_defaults=True):
    time: float
    run_id: str
