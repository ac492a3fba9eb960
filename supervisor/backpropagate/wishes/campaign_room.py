"""Whether a campaign's output folder has room for all of it, asked before its first run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from backpropagate.judge.disk_budget import CampaignBytes, adapter_parameters, campaign_bytes, check_room
from backpropagate.wishes.base_config import base_config, hub_cache
from backpropagate_protocol.spec import RunSpec


def check(
    spec: RunSpec, environ: Mapping[str, str], *, runs: int, done: int, parameters: int | None = None
) -> CampaignBytes | None:
    """What the campaign still needs; None if that cannot be told, because the base is not on this machine yet.

    runs: how many it has by now. done: how many of them are trained and merged. parameters: of one adapter, where a run has said
    so already. Raises DiskFullError if there is less room.
    """
    if parameters is None:
        config = base_config(spec.model, hub_cache(environ))
        parameters = adapter_parameters(config, spec.lora) if config is not None else None
    if parameters is None:
        return None
    needed = campaign_bytes(spec, parameters, runs=runs, done=done, kept_after=0)
    check_room(needed, free_bytes(Path(spec.output)), spec.output, spec.run_id)
    return needed


def free_bytes(path: Path) -> int | None:
    """On the disk of a folder that need not exist yet; None for a file system that states no size, or cannot be asked."""
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    try:
        usage = shutil.disk_usage(path)
    except OSError:
        return None
    return usage.free if usage.total else None
