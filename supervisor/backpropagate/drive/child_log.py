"""What a child writes to its standard error: the file that takes it, its bound, and the end of what the child said there."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from threading import Lock

import anyio

from backpropagate.drive.aside import aside

_LAST_WORDS = 1 << 16
LIMIT = 64 << 20  # far more than anybody reads, and little beside one checkpoint
HEAD = 1 << 20  # how it began: versions, warnings of the import
TAIL = 1 << 20  # how it ended: stacks and hints, many times what the last words take
_CATCH_UP = 16  # looks at what came meanwhile; one who writes faster than it is copied must not hold us up
_CHUNK = 1 << 20
_LOOK_SECONDS = 1.0
_MARK = re.compile(rb"\n\[(\d+) bytes were dropped here: the log had grown too long\]\n")


class ChildLog:
    """Of one child: `descriptor` is for it to write to. Others may have written into the same files before it.

    later: where one that waits goes on when it works. Its first file may then be another's, who waits for its place.
    """

    def __init__(self, descriptor: int, path: Path, later: Path | None = None) -> None:
        self.descriptor = descriptor
        self._paths: tuple[Path, ...] = (path,) if later is None else (path, later)
        self._first = None if later is None else os.fstat(descriptor)
        self._begins = (0,) * len(self._paths)
        self._own: tuple[Path, ...] = self._paths[:1]  # one that waits must not touch the log of the one that works
        self._over = False
        self._lock = Lock()

    def begin(self) -> None:
        """What comes from now on are its own words."""
        with self._lock:
            self._begins, self._own = tuple(map(_size, self._paths)), self._paths

    def last_words(self) -> str:
        """The end of what was written since."""
        with self._lock:
            own = zip(self._paths, self._begins, strict=True)
            return "".join(_end(path, begin) for at, (path, begin) in enumerate(own) if self._still_its(at))

    def end(self) -> None:
        """Its descriptor is about to be closed, and its number may soon be another file's."""
        self._over = True

    def bound(self, limit: int = LIMIT, head: int = HEAD, tail: int = TAIL) -> None:
        """Drops the middle of what has passed `limit` bytes."""
        with self._lock:
            begins = list(self._begins)
            for at, path in enumerate(self._own):
                cut = drop_middle(path, limit, head, tail) if self._still_its(at) else None
                if cut is None:
                    continue
                begins[at] = cut.now(begins[at])
                if sys.platform == "win32" and at == 0 and not self._over:
                    # On Windows the child appends where this handle, which it shares, stands.
                    os.lseek(self.descriptor, 0, os.SEEK_END)
            self._begins = tuple(begins)

    def _still_its(self, at: int) -> bool:
        if at or self._first is None:
            return True
        try:
            return os.path.samestat(self._first, self._paths[0].stat())
        except OSError:
            return False


class Cut:
    """What was taken out of a file: from `head` to `old`; what stood at `old` stands at `new`."""

    def __init__(self, head: int, old: int, new: int) -> None:
        self._head, self._old, self._new = head, old, new

    def now(self, position: int) -> int:
        """Where that position of before is; one that was dropped is where what was kept begins."""
        if position <= self._head:
            return position
        return self._new + max(0, position - self._old)


def drop_middle(path: Path, limit: int, head: int, tail: int) -> Cut | None:
    """Keeps the first `head` and the last `tail` bytes of a file longer than `limit`, and says between them what went.

    The end is copied to its new place before the file is cut, so a crash at any moment loses nothing but the middle.
    Who appends meanwhile goes on; lost is only what comes in the moment between the last look and the cut.
    None: the file is short enough, or cannot be read or written.
    """
    try:
        if path.stat().st_size <= limit:
            return None
        with open(path, "r+b", buffering=0) as log:
            old = os.fstat(log.fileno()).st_size - tail
            log.seek(head)
            earlier = _MARK.match(log.read(128))
            dropped = old - head + (int(earlier[1]) if earlier else 0)
            mark = b"\n[%d bytes were dropped here: the log had grown too long]\n" % dropped
            log.seek(head)
            log.write(mark)
            read, written = old, head + len(mark)
            for _ in range(_CATCH_UP):
                log.seek(read)
                block = log.read(_CHUNK)
                if not block:
                    break
                log.seek(written)
                written += log.write(block)
                read += len(block)
            log.truncate(written)
            return Cut(head, old, head + len(mark))
    except OSError:
        return None


@asynccontextmanager
async def bounded(log: ChildLog) -> AsyncIterator[None]:
    """While the block runs, the log is kept below its bound."""

    async def keep() -> None:
        while True:
            await aside(log.bound)
            await anyio.sleep(_LOOK_SECONDS)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(keep)
        try:
            yield
        finally:
            log.end()
            tasks.cancel_scope.cancel()


@contextmanager
def child_log(path: Path) -> Iterator[ChildLog]:
    """Of a child that works; a disk that gives no file must not keep it from training."""
    with _opened(path, os.O_APPEND) as descriptor:
        yield ChildLog(descriptor, path)


@contextmanager
def waiting_log(path: Path, later: Path) -> Iterator[ChildLog]:
    """Of one that waits, so that its words are not taken for those of the one that works; `later` is where it goes on.

    The one that works may have waited before it, and written into the file that was here: this one gets a new file.
    """
    with _opened(path, os.O_APPEND | os.O_EXCL, anew=True) as descriptor:
        yield ChildLog(descriptor, path, later)


@contextmanager
def _opened(path: Path, how: int, *, anew: bool = False) -> Iterator[int]:
    try:
        if anew:
            path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | how | getattr(os, "O_BINARY", 0), 0o644)
    except OSError:  # also on Windows, which keeps the name of a file for as long as somebody has it open
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
