"""The temporary folder of a drill: with room enough in it, gone when its drill is, and those of dead drills with it."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from backpropagate_protocol.errors import DiskFullError

PREFIX = "backprop-drill-"
LOCK = ".drill.lock"  # held as long as the drill lives; a folder without one was kept for its user
TOY_ROOM, REAL_ROOM = 16 << 20, 64 << 20  # bytes: several times what was seen, of the bundled base
_PROBE = 1 << 20
_YOUNG = 60.0  # seconds: who made a lock may be about to take it


class DrillFolder:
    """`keep`: it stays when the drill is over."""

    def __init__(self, path: Path, room: int) -> None:
        self.path, self._room, self.keep = path, room, False

    def full(self) -> DiskFullError | None:
        """What to say if it takes not even a mebibyte more."""
        probe = self.path / ".probe"
        try:
            with open(probe, "wb", buffering=0) as file:
                left = _PROBE
                while left:
                    left -= file.write(bytes(min(left, 1 << 16)))
                os.fsync(file.fileno())
        except OSError as error:
            return _full(self.path.parent, self._room, 0) if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
        finally:
            with suppress(OSError):
                probe.unlink(missing_ok=True)
        return None


@contextmanager
def drill_folder(room: int) -> Iterator[DrillFolder]:
    """A new folder among the temporary files, for a drill that needs that many bytes.

    Raises DiskFullError if they are not there, OSError if nothing can be written.
    """
    temporary = Path(tempfile.gettempdir())
    sweep(temporary)
    free = shutil.disk_usage(temporary).free
    if free < room:
        raise _full(temporary, room, free)
    folder = DrillFolder(Path(tempfile.mkdtemp(prefix=PREFIX)), room)
    lock = FileLock(folder.path / LOCK, thread_local=False)
    try:
        try:
            lock.acquire()
            yield folder
        finally:
            if not folder.keep:
                _empty(folder.path)
            lock.release()
            with suppress(OSError):
                (folder.path / LOCK).unlink(missing_ok=True)
    finally:
        with suppress(OSError):
            folder.path.rmdir()  # one that is kept is not empty


def sweep(temporary: Path) -> None:
    """Removes what drills left that were killed. One that lives holds its lock; another user's is not touched."""
    for folder in temporary.glob(f"{PREFIX}*"):
        try:
            about, lock = folder.lstat(), folder / LOCK
            if not stat.S_ISDIR(about.st_mode) or (sys.platform != "win32" and about.st_uid != os.getuid()):
                continue
            if time.time() - lock.lstat().st_mtime < _YOUNG:
                continue
            with FileLock(lock, timeout=0):
                _empty(folder)
            lock.unlink(missing_ok=True)
            folder.rmdir()
        except (OSError, Timeout):
            continue


def _empty(folder: Path) -> None:
    """Last of all the lock goes, elsewhere: what is cut off here is swept by the next drill."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != LOCK:
            with suppress(OSError):
                path.unlink()


def _full(temporary: Path, room: int, free: int) -> DiskFullError:
    variable = "TEMP" if sys.platform == "win32" else "TMPDIR"
    return DiskFullError(
        f"a drill needs {room >> 20} MiB in the folder for temporary files, and {temporary} has {free >> 20} MiB left",
        suggestion=f"Free space there, or name another folder in the environment variable {variable}.",
    )
