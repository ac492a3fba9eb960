"""What a run's data are now, as a digest that can be compared with the one in its row: read, and never parsed.

It is the same as the child's: SHA-256 of the whole file, and with earlier rows mixed in, of the digests of all files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

from backpropagate_protocol.errors import DatasetError, DatasetNotFoundError
from backpropagate_protocol.spec import DataSpec

Digest = Callable[[str], str]  # of one file


def digests() -> Digest:
    """Reads each file once, however often it is asked for. Raises DatasetNotFoundError, DatasetError."""

    @cache
    def digest(source: str) -> str:
        try:
            with open(source, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError as error:
            raise DatasetNotFoundError(f"{source}, which the run was trained on, is not there any more") from error
        except OSError as error:
            raise DatasetError(f"{source} cannot be read: {error.strerror or error}") from error

    return digest


def digest_now(data: DataSpec, digest: Digest) -> str | None:
    """None if some of it is on the hub, where nothing is read."""
    sources = [data.source, *(portion.source for portion in data.replay)]
    if not all(Path(source).is_absolute() for source in sources):
        return None
    if len(sources) == 1:
        return digest(sources[0])
    return hashlib.sha256("\n".join(map(digest, sources)).encode()).hexdigest()
