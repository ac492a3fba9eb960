"""Which kernels a probe found to work, remembered for this user: by the interpreter, its packages and the card."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping

import msgspec

from backpropagate.doors.environ import environment
from backpropagate.keep.userstate import state_dir
from backpropagate_protocol import durable

_MOST = 32  # environments; the oldest is forgotten


def today() -> str:
    return time.strftime("%Y-%m-%d", time.gmtime())


def known(python: str | None, packages: Mapping[str, str], card: str, day: str = "") -> tuple[str, ...] | None:
    """Names of `probes.PROBES` that work. Empty: none does. None: nobody asked in an environment like this one.

    card: its name; empty where none is seen. day: what was remembered for this day alone counts, too.
    """
    kept = _load()
    lasting = kept.get(_key(python, packages, card))
    return kept.get(_key(python, packages, card, day)) if lasting is None else lasting


def remember(python: str | None, packages: Mapping[str, str], card: str, names: Iterable[str], day: str = "") -> None:
    """For good, or for this `day` alone. A failure to do so is of no consequence: it is tried once more."""
    key = _key(python, packages, card, day)
    kept = {other: found for other, found in _load().items() if other != key} | {key: tuple(names)}
    try:
        state_dir().mkdir(parents=True, exist_ok=True)
        newest = dict(list(kept.items())[-_MOST:])
        durable.write_file(state_dir() / "probed.json", msgspec.json.encode(newest))
    except OSError:
        pass


def _key(python: str | None, packages: Mapping[str, str], card: str, day: str = "") -> str:
    installed = " ".join(f"{name}={packages[name]}" for name in sorted(packages) if name != "backpropagate")
    return f"{python or sys.executable}|{environment().get('CUDA_VISIBLE_DEVICES', '')}|{card}|{installed}{day and '|' + day}"


def _load() -> dict[str, tuple[str, ...]]:
    try:
        return msgspec.json.decode((state_dir() / "probed.json").read_bytes(), type=dict[str, tuple[str, ...]])
    except (OSError, msgspec.DecodeError):
        return {}
