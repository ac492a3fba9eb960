"""What every stage of an export gets: a way to say how far it is, and an output that appears only when it is complete."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from backpropagate_protocol.durable import DISK, Disk, discard, files_of, rename
from backpropagate_protocol.messages import Phase
from backpropagate_protocol.rundir import PARTIAL
from backpropagate_runner.voice import Voice


class Stage:
    """One stage's voice. `drilled` is called with the number of each sign of progress (1, 2, …) before it is given."""

    def __init__(self, phase: Phase, voice: Voice, drilled: Callable[[int], None]) -> None:
        self._phase, self._voice, self._drilled = phase, voice, drilled
        self._signs = 0

    def advance(self, done: int = 0, total: int = 0, detail: str = "") -> None:
        """A sign of progress: the stage counts as hung if none comes for long. done and total are bytes where bytes are
        moved; total 0: unknown. May be called as often as one likes."""
        self._signs += 1
        self._drilled(self._signs)
        self._voice.phase(self._phase, done, total, detail)

    def notice(self, text: str, level: str = "info") -> None:
        """Something the user should read once; level is info or warning."""
        self._voice.notice(text, level)


@contextmanager
def new_file(out: Path, disk: Disk = DISK) -> Iterator[Path]:
    """A path to write to; what is there when the block ends becomes `out`, durable, replacing what had that name.

    If the block raises, nothing of it stays and `out` is as it was.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + PARTIAL)
    discard(partial, disk)
    try:
        yield partial
        disk.sync_file(partial)
        rename(partial, out, disk)
    except BaseException:
        discard(partial, disk)
        raise
    disk.sync_dir(out.parent)


@contextmanager
def new_folder(out: Path, disk: Disk = DISK) -> Iterator[Path]:
    """The same for a folder, which exists and is empty when the block begins."""
    partial = out.with_name(out.name + PARTIAL)
    discard(partial, disk)
    partial.mkdir(parents=True)
    try:
        yield partial
        for name in files_of(partial):
            disk.sync_file(partial / name)
        disk.sync_dir(partial)
        discard(out, disk)
        rename(partial, out, disk)
    except BaseException:
        discard(partial, disk)
        raise
    disk.sync_dir(out.parent)
