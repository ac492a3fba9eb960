"""Which runs of a campaign were trained on files that are no longer what they were: their rows cannot be told apart any more.

Held-out rows are known by their position. In a file that was changed since, a position may be another row, one that was
trained on, and what is scored or replayed by it would be false.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from backpropagate.events import LinkEnded
from backpropagate.judge.campaign import Facts
from backpropagate.keep.data_digest import Digest, digest_now, digests
from backpropagate_protocol.errors import DatasetError
from backpropagate_protocol.spec import DataSpec

_Stamp = tuple[int, int, int]  # of a file: its number, size and time of change


class Files:
    """Digests of files, each read again only when it looks changed. A file that is not there raises DatasetNotFoundError."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[_Stamp, str]] = {}

    def digest(self, source: str) -> str:
        try:
            state = Path(source).stat()
        except OSError:
            return digests()(source)
        stamp = (state.st_ino, state.st_size, state.st_mtime_ns)
        known = self._known.get(source)
        if known is None or known[0] != stamp:
            known = self._known[source] = (stamp, digests()(source))
        return known[1]


def as_read(data: DataSpec, dataset_digest: str, digest: Digest) -> str:
    """The digest of a run's own file as the run read it, from that of all it read; empty: it is on the hub, or not known.

    If any of the files has changed since, that of its own cannot be told from the others': what is given is then the digest
    of no file, so that the file counts as changed from now on.
    """
    try:
        if not dataset_digest or digest_now(data, digest) != dataset_digest:
            return dataset_digest if Path(data.source).is_absolute() else ""
        return digest(data.source)
    except DatasetError:
        return dataset_digest


def changed(facts: Facts, digest: Digest) -> Mapping[int, str]:
    """By run, what there is to be said: the file was changed, is gone or cannot be read. Nothing of a hub's data."""
    found = {link.number: _change(link.data, facts.trained[link.number], digest) for link in facts.links if link.number in facts.trained}  # fmt: skip
    return {number: said for number, said in found.items() if said}


def _change(data: DataSpec, ended: LinkEnded, digest: Digest) -> str:
    if not ended.source_digest or not Path(data.source).is_absolute():
        return ""
    try:
        if digest(data.source) == ended.source_digest:
            return ""
    except DatasetError as error:
        return error.message
    return f"{data.source} is not what it was when run {ended.link} ({ended.name}) was trained on it"
