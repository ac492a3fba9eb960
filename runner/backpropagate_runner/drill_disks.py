"""Disks that fail on purpose while a checkpoint is written, and damage to one that was: what the drill plans of saves."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

from backpropagate_protocol.durable import Disk
from backpropagate_protocol.rundir import MANIFEST, PARTIAL

_BESIDE_SECONDS = 60.0


class _FullDisk(Disk):
    def write(self, path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


class _FailingDisk(Disk):
    def fsync(self, descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


class _KilledBeforeRename(Disk):
    """Dies when the checkpoint is complete but for its name."""

    def rename(self, source: Path, target: Path) -> None:
        if source.name.endswith(PARTIAL):
            os.kill(os.getpid(), 9)
        super().rename(source, target)


class _KilledBeforeManifest(Disk):
    """Dies when the files are written and the manifest is not."""

    def write(self, path: Path, data: bytes) -> None:
        os.kill(os.getpid(), 9)


class KilledBeside(Disk):
    """Dies when the training has gone on by a step, and the manifest is not written yet."""

    def __init__(self, trained_on: threading.Event) -> None:
        self._trained_on = trained_on

    def write(self, path: Path, data: bytes) -> None:
        if self._trained_on.wait(_BESIDE_SECONDS):
            os.kill(os.getpid(), 9)
        super().write(path, data)


BESIDE = "sigkill_beside_save"  # not at the last step, which is saved when the training is over

DISKS: dict[str, type[Disk]] = {
    "disk_full": _FullDisk,
    "disk_error": _FailingDisk,
    "sigkill_in_save": _KilledBeforeRename,
    "sigkill_before_manifest": _KilledBeforeManifest,
}


def _victim(folder: Path) -> Path:
    """The largest file of a checkpoint."""
    return max((p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST), key=lambda p: p.stat().st_size)


def _truncate(folder: Path) -> None:
    path = _victim(folder)
    os.truncate(path, path.stat().st_size // 2)


def _flip_bit(folder: Path) -> None:
    path = _victim(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], None]] = {"torn_save": _truncate, "bitflip_save": _flip_bit}
