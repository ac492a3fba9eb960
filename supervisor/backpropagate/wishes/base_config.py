"""The configuration of a base model, if it lies on this machine: in a folder, or where the hub's client keeps what it fetched.

Nothing is fetched here. Who only wants to know how large something will be can do without.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from backpropagate.wishes.preset_configs import CONFIGS
from backpropagate_protocol.spec import ModelSpec

_CONFIG = "config.json"


def hub_cache(environ: Mapping[str, str]) -> Path:
    """The folder of the hub client's cache, by the variables that it goes by."""
    if environ.get("HF_HUB_CACHE"):
        return Path(environ["HF_HUB_CACHE"]).expanduser()
    home = environ.get("HF_HOME") or os.path.join(environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(home).expanduser() / "hub"


def base_config(model: ModelSpec, cache: Path) -> dict[str, object] | None:
    """What config.json says; None if it is not on this machine, or cannot be read."""
    folder = Path(model.path)
    for place in [folder] if folder.is_dir() else _snapshots(model, cache):
        try:
            return msgspec.json.decode((place / _CONFIG).read_bytes(), type=dict[str, object])
        except (OSError, msgspec.DecodeError):
            continue
    return None


def _snapshots(model: ModelSpec, cache: Path) -> list[Path]:
    """Where the wanted revision would lie: under its commit, which a branch's name stands for in `refs`."""
    home = cache / ("models--" + model.path.replace("/", "--"))
    revision = model.revision or "main"
    try:
        commit = (home / "refs" / revision).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        commit = revision
    return [home / "snapshots" / commit]


def config_of(model: ModelSpec, environ: Mapping[str, str]) -> Mapping[str, object] | None:
    """Its config.json on this machine, or what is known of a preset's; None if there is neither."""
    found = base_config(model, hub_cache(environ))
    return CONFIGS.get(model.path) if found is None else found
