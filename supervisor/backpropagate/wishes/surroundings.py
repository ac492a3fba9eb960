"""What has to be there before anything starts: a backend that can be, an interpreter with the packages, a folder that takes files."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from backpropagate.wishes.mlx import check_place
from backpropagate_protocol.errors import ConfigurationError, DependencyError, DiskFullError, InvalidSettingError
from backpropagate_protocol.mlx_rules import PACKAGES

_TRAINING = ("torch", "transformers", "peft", "trl", "datasets")


def check_backend(backend: str) -> None:
    """Raises InvalidSettingError for one that this machine cannot have."""
    if backend == "mlx":
        check_place()


def check_runner(
    python: str | None, backend: str, *, what: str = "training", needs: Sequence[str] = _TRAINING
) -> str | None:
    """The absolute path of the interpreter that shall run the child; None for our own, which then has what it `needs`."""
    if python is not None:
        found = shutil.which(os.path.expanduser(python))
        if found is None:
            raise InvalidSettingError(
                f"--runner-python: {python} is not a program that can be run",
                suggestion="Name a Python interpreter that has the training packages, such as /path/to/.venv/bin/python.",
            )
        return os.path.abspath(found)
    if backend == "toy":
        return None
    lacking = [name for name in PACKAGES if not installed(name)] if backend == "mlx" else []
    if lacking:
        raise DependencyError(
            f"{what} on MLX needs {', '.join(lacking)}, not installed here", code="DEP_MLX_UNAVAILABLE"
        )
    missing = [name for name in needs if not installed(name)]
    if missing:
        raise DependencyError(f"{what} needs {', '.join(missing)}, not installed here")
    return None


def installed(name: str) -> bool:
    """Looked up, not imported: the parent never loads a framework."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def writable_folder(name: str, *, least_mib: int, flag: str = "--output") -> str:
    """The absolute folder, which need not exist yet but must be possible to write."""
    path = Path(os.path.abspath(os.path.expanduser(name)))
    nearest = path
    while not os.path.lexists(nearest):
        nearest = nearest.parent
    choose = f"Choose another folder with {flag}, or change its permissions."
    if not nearest.is_dir():
        raise ConfigurationError(f"{nearest} is not a folder", code="CONFIG_OUTPUT_UNWRITABLE", suggestion=choose)
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigurationError(f"{nearest} cannot be written", code="CONFIG_OUTPUT_UNWRITABLE", suggestion=choose)
    usage = shutil.disk_usage(nearest)
    free = usage.free // 2**20
    if usage.total and free < least_mib:  # a file system that states no size at all is no full disk
        raise DiskFullError(
            f"the disk of {path} has {free} MiB free; a run needs at least {least_mib} MiB",
            suggestion=f"Free space, or choose another folder with {flag}.",
        )
    return str(path)
