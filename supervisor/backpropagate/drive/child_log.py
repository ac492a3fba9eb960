"""What a child writes to its standard error: the file that takes it, and the end of what it said there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LAST_WORDS = 1 << 16


class ChildLog:
    """Of one child: `descriptor` is for it to write to. Others may have written into the same files before it."""

    def __init__(self, descriptor: int, paths: tuple[Path, ...]) -> None:
        self.descriptor, self._paths = descriptor, paths
        self._begins = (0,) * len(paths)

    def begin(self) -> None:
        """What comes from now on are its own words."""
        self._begins = tuple(map(_size, self._paths))

    def last_words(self) -> str:
        """The end of what was written since."""
        return "".join(map(_end, self._paths, self._begins))


@contextmanager
def child_log(path: Path) -> Iterator[ChildLog]:
    """Of a child that works; a disk that gives no file must not keep it from training."""
    with _opened(path, os.O_APPEND) as descriptor:
        yield ChildLog(descriptor, (path,))


@contextmanager
def waiting_log(path: Path, later: Path) -> Iterator[ChildLog]:
    """Of one that waits, so that its words are not taken for those of the one that works; `later` is where it goes on."""
    with _opened(path, os.O_APPEND | os.O_TRUNC) as descriptor:
        yield ChildLog(descriptor, (path, later))


@contextmanager
def _opened(path: Path, how: int) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | how, 0o644)
    except OSError:
        descriptor = os.open(os.devnull, os.O_WRONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _end(path: Path, begin: int) -> str:
    try:
        with open(path, "rb") as log:
            log.seek(max(begin, os.fstat(log.fileno()).st_size - _LAST_WORDS))
            return log.read(_LAST_WORDS).decode(errors="replace")
    except OSError:
        return ""
