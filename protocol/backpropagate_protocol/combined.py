"""What a CombineJob leaves beside the adapters it made: combine.json, from which the same merge can be checked and made again.

merged/       a complete PEFT adapter: what the runs so far come to
next/         adapter_config.json and weights: what the next run begins from
state.safetensors   only where `merged/` is stored in fewer bits than float32: what the next merge goes on from
combine.json  written last
"""

from __future__ import annotations

import msgspec

MERGED, NEXT, STATE, COMBINED = "merged", "next", "state.safetensors", "combine.json"
COMBINED_SCHEMA = 1


class CombinedRun(msgspec.Struct, frozen=True, kw_only=True):
    """One run's part. `coefficient` is what it was merged with when it was the newest, `weight` what is left of it now.

    The weights add up to 1. Under `slao` they are those of the B side; A is the newest run's.
    """

    digest: str  # SHA-256 over the names and SHA-256 digests of the adapter's configuration and weights
    coefficient: float
    weight: float


class Combined(msgspec.Struct, frozen=True, kw_only=True):
    """combine.json. No paths and no times: the same runs and the same wishes give the same file."""

    schema: int = COMBINED_SCHEMA
    link: int  # how many runs are in it
    rule: str
    coefficient: float  # of the newest run
    floor: float
    weight: float
    density: float
    seed: int
    runs: tuple[CombinedRun, ...]
    state: str  # the file, below this folder, that the next merge goes on from; empty: the rule has no state
    files: dict[str, str]  # SHA-256 of every other file, by its name with forward slashes
    numpy: str
    notes: tuple[str, ...] = ()
