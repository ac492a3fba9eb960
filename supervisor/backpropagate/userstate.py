"""What this user's runs share across output folders: locks of GPUs, and which micro-batch fitted where."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from backpropagate.environ import environment
from backpropagate_protocol import durable


def state_dir() -> Path:
    """The folder for it; not created here."""
    env = environment()
    if sys.platform == "win32":
        base = Path(env.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(env.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return base / "backpropagate"


def fit_key(gpu: str, model: str, method: str, max_length: int) -> str:
    """What a micro-batch that fitted is remembered under."""
    return f"{gpu}|{model}|{method}|{max_length}"


def _file() -> Path:
    return state_dir() / "fitted.json"


def _load() -> dict[str, int]:
    try:
        return msgspec.json.decode(_file().read_bytes(), type=dict[str, int])
    except (OSError, msgspec.DecodeError):
        return {}  # a memory, not a truth: without it a run begins with a guess


def fitted(key: str) -> int | None:
    """The micro-batch that fitted last time, if any."""
    return _load().get(key)


def remember(key: str, micro_batch: int) -> None:
    """Remembers it; a failure to do so is of no consequence."""
    known = _load()
    if known.get(key) == micro_batch:
        return
    try:
        state_dir().mkdir(parents=True, exist_ok=True)
        durable.write_file(_file(), msgspec.json.encode({**known, key: micro_batch}))
    except OSError:
        pass
