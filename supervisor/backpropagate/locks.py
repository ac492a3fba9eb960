"""Who trains where: operating-system locks on the output folder and on the GPU, with the holder's name beside them.

The kernel releases such a lock when its holder dies, however it dies; the identity file is only for the message.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from backpropagate.userstate import state_dir
from backpropagate_protocol.errors import BusyError
from backpropagate_protocol.rundir import OutputDir

# A probe (`holder_of`) holds the lock for an instant; whoever wants it in earnest tries for this long.
_PATIENCE = 0.4
_WAIT_POLL = 1.0


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


def _identity(path: Path) -> Path:
    return path.with_name(path.name + ".holder")


def _lock(path: Path) -> FileLock:
    return FileLock(path, thread_local=False)


@contextmanager
def hold(path: Path, run_id: str, what: str, *, wait: bool = False) -> Iterator[None]:
    """Holds the lock while the block runs. `what` names it in the message: 'the output folder /x'.

    Raises BusyError within half a second if another process has it, unless `wait`: then it waits as long as it takes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = _lock(path)
    while True:
        try:
            lock.acquire(timeout=_PATIENCE, poll_interval=0.05)
            break
        except Timeout:
            if not wait:
                raise _busy(path, what, run_id) from None
            time.sleep(_WAIT_POLL)
    try:
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        holder = Holder(pid=os.getpid(), run_id=run_id, since=since)
        _identity(path).write_bytes(msgspec.json.encode(holder))
        yield
    finally:
        _identity(path).unlink(missing_ok=True)
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
    if not path.exists():
        return None
    lock = _lock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return _read(path)
    except OSError:
        return None  # a folder that we may only read: then nobody of ours trains into it
    lock.release()
    return None
