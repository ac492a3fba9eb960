"""One digest for a whole folder, and the list of what is in it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path


def files_below(folder: Path) -> dict[str, Path]:
    """All files, by their names with forward slashes, in the order of these."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return dict(sorted(found.items()))


def folder_digest(digests: Mapping[str, str]) -> str:
    """SHA-256 over the names and SHA-256 digests of a folder's files."""
    lines = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()


def digest_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
