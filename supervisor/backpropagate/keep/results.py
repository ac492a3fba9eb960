"""The finished adapter's way to `<output>/lora`: copied beside it, then swapped in."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec

from backpropagate_protocol import durable, swap
from backpropagate_protocol.errors import ConfigurationError
from backpropagate_protocol.rundir import MANIFEST, PARTIAL, Manifest, OutputDir


def trained_revision(adapter: Path) -> str:
    """The commit of a hub's model that the adapter of a run was trained on; empty where that is not known."""
    try:
        return msgspec.json.decode((adapter / MANIFEST).read_bytes(), type=Manifest).model_revision
    except (OSError, msgspec.DecodeError):
        return ""


def publish_adapter(adapter: Path, output: OutputDir) -> Path:
    """Makes `adapter` the output folder's `lora`; whoever looks sees the old one or the new one whole, or for an instant none.

    Raises OSError; the old one then stands.
    """
    recover(output)
    new = _new(output)
    try:
        _copied(adapter, new)
        swap.rename_over(new, output.lora)
    except OSError:
        durable.discard(new)
        raise
    return output.lora


def copy_adapter(adapter: Path, target: Path) -> Path:
    """A copy under a name of the user's, whole or not at all; returns its absolute path.

    Raises ConfigurationError (CONFIG_OUTPUT_UNWRITABLE) if there is something of that name, or if it cannot be written.
    """
    target = target.expanduser().absolute()
    if os.path.lexists(target):
        raise ConfigurationError(
            f"{target} is there already", code="CONFIG_OUTPUT_UNWRITABLE", suggestion="Choose another name."
        )
    new = target.with_name(f".{target.name}{PARTIAL}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        durable.discard(new)
        _copied(adapter, new)
        durable.rename(new, target)
    except OSError as error:
        durable.discard(new)
        raise ConfigurationError(
            f"{target} cannot be written: {error.strerror or error}", code="CONFIG_OUTPUT_UNWRITABLE"
        ) from error
    durable.DISK.sync_dir(target.parent)
    return target


def _copied(adapter: Path, new: Path) -> None:
    shutil.copytree(adapter, new, ignore=shutil.ignore_patterns(MANIFEST))
    for name in durable.files_of(new):
        durable.DISK.sync_file(new / name)
    durable.DISK.sync_dir(new)


def _new(output: OutputDir) -> Path:
    return output.lora.with_name(f".lora.new{PARTIAL}")


def recover(output: OutputDir) -> None:
    """Ends a publication that was cut off: the old adapter comes back if it had no successor yet; nothing half-made stays."""
    swap.settle(output.lora)
    durable.discard(_new(output))
