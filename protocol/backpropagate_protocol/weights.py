"""One digest for the weights of a model or an adapter: equal for equal weights, whatever the text files beside them say."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from backpropagate_protocol import durable
from backpropagate_protocol.rundir import MANIFEST, Manifest

_WEIGHTS = (".safetensors", ".bin")


def weighs(name: str) -> bool:
    """Whether the file of this name holds weights."""
    return name.endswith(_WEIGHTS)


def digest_of(sums: Mapping[str, str]) -> str:
    """Over the weight files among `sums`, which maps a file's name in its folder to its SHA-256; empty if there are none."""
    lines = [f"{name} {sha256}" for name, sha256 in sorted(sums.items()) if weighs(name)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest() if lines else ""


def digest_in(folder: Path) -> str:
    """The same of a folder, by its manifest if it has one; empty for none. Raises OSError."""
    try:
        files = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest).files
    except (OSError, msgspec.DecodeError):
        files = {name: durable.file_entry(folder / name) for name in durable.files_of(folder) if weighs(name)}
    return digest_of({name: entry.sha256 for name, entry in files.items()})
