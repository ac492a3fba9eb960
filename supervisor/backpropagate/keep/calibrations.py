"""What real steps took, for each card and kind of training: remembered beside the micro-batches that fitted."""

from __future__ import annotations

from pathlib import Path

import msgspec

from backpropagate.judge.estimate import Measured
from backpropagate.keep.userstate import fit_key, state_dir
from backpropagate_protocol import durable
from backpropagate_protocol.spec import RunSpec


def _file() -> Path:
    return state_dir() / "calibrations.json"


def _load() -> dict[str, Measured]:
    try:
        return msgspec.json.decode(_file().read_bytes(), type=dict[str, Measured])
    except (OSError, msgspec.DecodeError):
        return {}


def measured(gpu: str, spec: RunSpec) -> Measured | None:
    """What was measured on a card of this name, if such a training was."""
    return _load().get(fit_key(gpu, spec))


def remember(gpu: str, spec: RunSpec, found: Measured) -> None:
    """A failure to do so is of no consequence: the estimate is made without."""
    try:
        state_dir().mkdir(parents=True, exist_ok=True)
        durable.write_file(_file(), msgspec.json.encode({**_load(), fit_key(gpu, spec): found}))
    except OSError:
        pass
