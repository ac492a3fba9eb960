"""The finished adapter's way to `<output>/lora`: copied beside it, then swapped in."""

from __future__ import annotations

import shutil
from pathlib import Path

from backpropagate_protocol import durable
from backpropagate_protocol.rundir import MANIFEST, PARTIAL, OutputDir


def publish_adapter(adapter: Path, output: OutputDir) -> Path:
    """Makes `adapter` the output folder's `lora`; whoever looks sees the old one or the new one whole, or for an instant none.

    Raises OSError; the old one then stands.
    """
    recover(output)
    new, old = _new(output), _old(output)
    try:
        shutil.copytree(adapter, new, ignore=shutil.ignore_patterns(MANIFEST))
        for name in durable.files_of(new):
            durable.DISK.sync_file(new / name)
        durable.DISK.sync_dir(new)
        if output.lora.exists():
            durable.rename(output.lora, old)
        try:
            durable.rename(new, output.lora)
        except OSError:
            if old.exists():
                durable.rename(old, output.lora)
            raise
    except OSError:
        durable.discard(new)
        raise
    durable.DISK.sync_dir(output.path)
    durable.discard(old)
    return output.lora


def _new(output: OutputDir) -> Path:
    return output.lora.with_name(f".lora.new{PARTIAL}")


def _old(output: OutputDir) -> Path:
    return output.lora.with_name(f".lora.old{PARTIAL}")


def recover(output: OutputDir) -> None:
    """Ends a swap that was cut off: the old adapter comes back if it had no successor yet; nothing half-made stays."""
    if _old(output).exists() and not output.lora.exists():
        durable.rename(_old(output), output.lora)
    durable.discard(_old(output))
    durable.discard(_new(output))
