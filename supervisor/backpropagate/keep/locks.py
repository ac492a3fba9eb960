"""Who trains where: operating-system locks on the output folder and on the GPU, with the holder's name beside them.

The kernel releases such a lock when its holder dies, however it dies; the identity file is only for the message.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from backpropagate.keep.userstate import state_dir
from backpropagate_protocol.errors import BusyError
from backpropagate_protocol.lifeline import is_alive
from backpropagate_protocol.rundir import OutputDir

if sys.platform != "win32":
    import fcntl

# A probe (`holder_of`) holds the lock for an instant; whoever wants it in earnest tries for this long.
PATIENCE = 0.4


_EXPORT = "export-"
_OLD = 24 * 3600.0  # seconds


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds a lock: the supervisor's pid, its run, and since when (ISO 8601, UTC)."""

    pid: int
    run_id: str
    since: str


def output_lock(output: OutputDir) -> Path:
    return output.lock


def gpu_lock(uuid: str) -> Path:
    """One lock per card and user; the name of the card is part of the file's name."""
    safe = "".join(c if c.isalnum() or c == "-" else "_" for c in uuid)
    return state_dir() / f"{safe}.lock"


def export_lock(result: Path) -> Path:
    """One lock per result and user: the folder of an export is the user's own, and stays free of our files.

    Whatever way the folder is named: through a link, or in other letters where the system does not tell them apart.
    """
    place = os.path.normcase(result.parent.resolve() / result.name)
    name = hashlib.sha256((place.casefold() if sys.platform == "darwin" else place).encode()).hexdigest()[:16]
    return state_dir() / f"{_EXPORT}{name}.lock"


def forget_old_exports() -> None:
    """Removes the locks of results that nobody has made for a day; whoever holds one keeps it."""
    with suppress(OSError):
        for path in state_dir().glob(f"{_EXPORT}*.lock"):
            if time.time() - path.stat().st_mtime < _OLD or _is_held(path) is not False:
                continue
            with suppress(OSError):
                path.unlink()
                _identity(path).unlink(missing_ok=True)


def _identity(path: Path) -> Path:
    return path.with_name(path.name + ".holder")


@contextmanager
def hold(path: Path, run_id: str, what: str, *, patience: float = PATIENCE) -> Iterator[Holder]:
    """Holds the lock while the block runs, and says what others read of the holder meanwhile. `what` names it in the
    message: 'the output folder /x'.

    Raises BusyError if another process has it for `patience` seconds, OSError if there can be no such file; letting go
    raises nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=patience, poll_interval=0.05)
    except Timeout:
        raise _busy(path, what, run_id) from None
    try:
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        holder = Holder(pid=os.getpid(), run_id=run_id, since=since)
        _identity(path).write_bytes(msgspec.json.encode(holder))
        yield holder
    finally:
        try:
            with suppress(OSError):  # someone reads it (Windows), or the disk takes nothing: it is only a name
                _identity(path).unlink(missing_ok=True)
        finally:
            lock.release()


def _busy(path: Path, what: str, run_id: str) -> BusyError:
    holder = _read(path)
    by = f"run {holder.run_id} (process {holder.pid}) since {holder.since}" if holder else "another process"
    return BusyError(f"{what} is in use by {by}", run_id=run_id)


def _read(path: Path) -> Holder | None:
    try:
        return msgspec.json.decode(_identity(path).read_bytes(), type=Holder)
    except (OSError, msgspec.DecodeError):
        return None  # the holder is just writing it, or died while doing so


def holder_of(path: Path) -> Holder | None:
    """Who holds the lock at this moment; None if nobody does (or nobody whose name can be read)."""
    held = _is_held(path)
    holder = _read(path) if held is not False else None
    if held is None and holder is not None and not is_alive(holder.pid):
        return None
    return holder


if sys.platform == "win32":

    def _is_held(path: Path) -> bool | None:
        """Whether someone has the lock; None if that cannot be told."""
        if not path.exists():
            return False
        lock = FileLock(path, thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        except OSError:  # a folder that we may only read
            return None
        lock.release()
        return False

else:

    def _is_held(path: Path) -> bool | None:
        """Whether someone has the lock; None if that cannot be told. Reading is enough: it may be another user's."""
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a file system without such locks
            return None
        finally:
            os.close(descriptor)
        return False
