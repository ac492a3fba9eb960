"""What this user's runs share across output folders: locks of GPUs, and what fitted where."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import msgspec

from backpropagate.doors.environ import environment
from backpropagate_protocol import durable
from backpropagate_protocol.spec import RunSpec


def state_dir() -> Path:
    """The folder for it; not created here. Raises OSError if there is no place for one.

    A user without a home that takes files (a container's, a service's) has it among the temporary files.
    """
    try:
        folder = _base() / "backpropagate"
    except RuntimeError:  # no home at all
        return _temporary()
    existing = next((place for place in (folder, *folder.parents) if os.path.exists(place)), folder)
    return folder if os.path.isdir(existing) and os.access(existing, os.W_OK) else _temporary()


def _base() -> Path:
    env = environment()
    if sys.platform == "win32":
        return Path(env.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support"
    return Path(env.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")


def _temporary() -> Path:
    if sys.platform == "win32":
        return Path(tempfile.gettempdir()) / "backpropagate"  # the user's own there
    folder = Path(tempfile.gettempdir()) / f"backpropagate-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to somebody else")
    return folder


def fit_key(gpu: str, spec: RunSpec) -> str:
    """What a micro-batch that fitted is remembered under: all that a run's memory depends on, but for the batch."""
    model, train = spec.model, spec.train
    held = f"{model.dtype}|4bit={model.load_in_4bit}|checkpointing={train.gradient_checkpointing}"
    key = f"{gpu}|{model.name}|{train.method}|{train.mode}|{spec.data.max_length}|r{spec.lora.r}|{held}"
    # What came later is named only where it is not as it always was: what was remembered before stays true.
    more = [",".join(spec.lora.targets)] if spec.lora.targets != ("all-linear",) else []
    more += ["dora"] * spec.lora.use_dora + ["fp8"] * train.fp8 + ([train.optim] if train.optim != "auto" else [])
    more += [train.attention] if train.attention != "auto" else []
    more += ["unsloth"] * bool(train.unsloth) + ["compile"] * train.compile
    more += ["no-liger", "liger"][train.liger : train.liger + 1] if train.liger is not None else []
    more += (
        ["no-packing", "packing"][spec.data.packing : spec.data.packing + 1] if spec.data.packing is not None else []
    )
    return "|".join([key, *more])


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


def rehearsed(key: str, micro_batch: int) -> int:
    """Tokens of the longest sample that is known to fit in micro-batches of that size; 0: of none."""
    return _load().get(_rehearsal(key, micro_batch), 0)


def remember_rehearsed(key: str, micro_batch: int, tokens: int) -> None:
    """As `remember`."""
    remember(_rehearsal(key, micro_batch), tokens)


def _rehearsal(key: str, micro_batch: int) -> str:
    return f"{key}|tokens that fit at {micro_batch}"


def remember(key: str, number: int) -> None:
    """Remembers it; a failure to do so is of no consequence."""
    known = _load()
    if known.get(key) == number:
        return
    try:
        state_dir().mkdir(parents=True, exist_ok=True)
        durable.write_file(_file(), msgspec.json.encode({**known, key: number}))
    except OSError:
        pass


def forget(gpu: str) -> None:
    """Nothing is remembered of this card any more: one that was only played, say. A failure to do so is of no consequence."""
    known = _load()
    left = {key: number for key, number in known.items() if not key.startswith(f"{gpu}|")}
    if left == known:
        return
    try:
        if left:
            durable.write_file(_file(), msgspec.json.encode(left))
        else:
            _file().unlink(missing_ok=True)
    except OSError:
        pass
