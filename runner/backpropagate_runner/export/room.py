"""The room that there is on the disk of a folder that need not exist yet."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from backpropagate_protocol.errors import ConfigurationError, DiskFullError


def nearest(path: Path) -> Path:
    """The folder itself, or the first above it that is there."""
    while not os.path.lexists(path):
        path = path.parent
    return path


def free_bytes(path: Path) -> int | None:
    """None for a file system that states no size."""
    usage = shutil.disk_usage(nearest(path))
    return usage.free if usage.total else None


def same_disk(one: Path, other: Path) -> bool:
    return nearest(one).stat().st_dev == nearest(other).stat().st_dev


def check_disk(path: Path, needed: int, what: str) -> int:
    """The bytes that are free (0: not known). Raises DiskFullError if they are fewer than `needed`."""
    free = free_bytes(path)
    if free is not None and free < needed:
        raise DiskFullError(
            f"{what} needs about {megabytes(needed)} on the disk of {path}, which has {megabytes(free)} free",
            suggestion="Free space there, or choose another folder with -o.",
        )
    return free or 0


def check_writable(path: Path) -> None:
    """By writing: permissions alone say little on network disks and on Windows."""
    there = nearest(path)
    choose = "Choose another folder with -o, or change its permissions."
    if not there.is_dir():
        raise ConfigurationError(f"{there} is not a folder", code="CONFIG_OUTPUT_UNWRITABLE", suggestion=choose)
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be written: {error.strerror or error}", code="CONFIG_OUTPUT_UNWRITABLE", suggestion=choose
        ) from error


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
