"""Write, sync, rename: the one way a file gets into a run directory, and the one way a folder is found whole.

Guarantees, each with a test:
1. `write_file`: after it returns, a crash leaves the new content; before, the old content; never a mixture.
2. `commit_dir`: the folder appears under its final name only when every file in it, and its manifest, are durable.
3. `verify_dir` accepts exactly the folders whose every committed byte is what was committed, the manifest's own too;
   what it could not read it does not judge.
4. An fsync that failed is never retried on the same file: the caller throws the file away and writes a new one.

Every system call goes through a `Disk`, so that a test can stand in the door and lose what was not synced.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from backpropagate_protocol.rundir import MANIFEST, PARTIAL, FileEntry, Manifest

if sys.platform == "darwin":
    import fcntl

# Antivirus and indexers hold files open for moments: access denied, sharing violation, lock violation. What goes through
# the C runtime there, `open` above all, tells all three as EACCES and leaves `winerror` at None.
_WINDOWS_TRANSIENT = (5, 32, 33)
# What a file system answers that has no such call: network shares, FUSE, 9p. Not a failed sync, but none.
_NO_SYNC = frozenset({errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY})
_SEAL = b',"seal":"'
_RETRY_DELAYS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0)

T = TypeVar("T")


class Disk:
    """The file system calls that durability depends on."""

    def write(self, path: Path, data: bytes) -> None:
        """Create or truncate `path`, write, sync. An error leaves the file for the caller to remove."""
        with open(path, "wb") as file:
            file.write(data)
            file.flush()
            self.fsync(file.fileno())

    def fsync(self, descriptor: int) -> None:
        if sys.platform == "darwin":
            try:
                fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # fsync alone leaves the data in the drive's cache there
            except OSError as error:
                if error.errno not in _NO_SYNC:
                    raise
                os.fsync(descriptor)  # a share, or a foreign file system
        else:
            os.fsync(descriptor)

    def sync_file(self, path: Path) -> None:
        # Windows can only flush a handle that was opened for writing.
        descriptor = _retrying(lambda: os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0)))  # the sync itself: once
        try:
            self.fsync(descriptor)
        finally:
            os.close(descriptor)

    def sync_dir(self, path: Path) -> None:
        """Where the file system can. Where it cannot, the names are as durable as it makes them by itself."""
        if sys.platform == "win32":
            return  # a directory handle cannot be flushed there; NTFS journals the rename itself
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except PermissionError:
            return  # one may write into a folder that one may not list
        try:
            self.fsync(descriptor)
        except OSError as error:
            if error.errno not in _NO_SYNC | {errno.EACCES}:
                raise
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Replaces a file; a target folder must not exist."""
        os.replace(source, target)

    def remove(self, path: Path) -> None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


DISK = Disk()


def _retrying(action: Callable[[], T]) -> T:
    """What `action` returns; on Windows, tried again for a bounded time (2.6 s) where another program holds the file."""
    for delay in _RETRY_DELAYS:
        try:
            return action()
        except OSError as error:
            if not may_pass(error):
                raise
            time.sleep(delay)
    return action()


def may_pass(error: OSError, platform: str = sys.platform) -> bool:
    """Whether `error` may be another program's hold on a file, that ends by itself. Windows; elsewhere nothing is held."""
    code: int | None = getattr(error, "winerror", None)
    if code is None:
        return platform == "win32" and error.errno == errno.EACCES
    return code in _WINDOWS_TRANSIENT


def rename(source: Path, target: Path, disk: Disk = DISK) -> None:
    """Replaces a file; a target folder must not exist. Raises OSError.

    On Windows it is tried again while a virus scanner or an indexer holds what is to be renamed.
    """
    _retrying(lambda: disk.rename(source, target))


def discard(path: Path, disk: Disk = DISK) -> None:
    """Removes a file or folder of ours that is of no use any more; says nothing if that fails."""
    try:
        _retrying(lambda: disk.remove(path))
    except OSError:
        pass  # a leftover is found and removed at the next start


def write_file(path: Path, data: bytes, disk: Disk = DISK) -> None:
    """Replaces the content of `path` atomically and durably.

    On an error the old content stands; only where the folder's own sync fails, the last call, is it the new one.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        disk.write(temporary, data)
        rename(temporary, path, disk)
    except BaseException:
        discard(temporary, disk)
        raise
    disk.sync_dir(path.parent)


def file_entry(path: Path) -> FileEntry:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(size=path.stat().st_size, sha256=digest)


def files_of(folder: Path) -> list[str]:
    """The names of all files below `folder`, with forward slashes, sorted; the manifest left out."""
    found = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    return sorted(name for name in found if name != MANIFEST)


class NotWhole(Exception):
    """A folder is not what was committed; the message says what is wrong with it."""


def seal(manifest: bytes) -> bytes:
    """The JSON object `manifest` with a last field `seal`, the SHA-256 of what came before it."""
    return manifest[:-1] + _SEAL + hashlib.sha256(manifest).hexdigest().encode() + b'"}'


def _unsealed(content: bytes) -> bytes:
    """The JSON object that was sealed; raises NotWhole if it is another one now."""
    head, found, tail = content.rpartition(_SEAL)
    manifest = head + b"}"
    if not found or tail != hashlib.sha256(manifest).hexdigest().encode() + b'"}':
        raise NotWhole("the manifest is not what was written")
    return manifest


def commit_dir(staged: Path, final: Path, manifest: Callable[[dict[str, FileEntry]], bytes], disk: Disk = DISK) -> int:
    """Makes the folder `staged` durable and gives it the name `final`; returns its size in bytes.

    `staged` must lie on the same file system. `manifest` gets the file list and returns the bytes of `manifest.json`.
    On an error `staged` is removed, `final` does not exist, and the error is raised.
    """
    partial = final.with_name(final.name + PARTIAL)
    named = False
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        discard(partial, disk)
        if partial.exists():
            raise FileExistsError(errno.EEXIST, "a leftover cannot be removed", str(partial))
        rename(staged, partial, disk)
        names = files_of(partial)
        entries = {name: _retrying(functools.partial(file_entry, partial / name)) for name in names}
        for name in names:
            disk.sync_file(partial / name)
        for folder in sorted({(partial / name).parent for name in names} | {partial}, reverse=True):
            disk.sync_dir(folder)
        disk.write(partial / MANIFEST, seal(manifest(entries)))
        disk.sync_dir(partial)
        rename(partial, final, disk)
        named = True
        disk.sync_dir(final.parent)
    except BaseException:
        for leftover in (staged, partial, *([final] if named else [])):  # a `final` that is not ours stays
            discard(leftover, disk)
        raise
    return sum(entry.size for entry in entries.values())


def verify_dir(folder: Path) -> Manifest:
    """The manifest of a checkpoint whose every byte is what was committed.

    Raises NotWhole if something was read and is wrong, or is missing; OSError if it cannot be told, because the disk or
    the system did not let it be read now. Only the first says anything about the checkpoint.
    """
    content = _read(folder / MANIFEST, "the manifest", Path.read_bytes)
    try:
        manifest = msgspec.json.decode(_unsealed(content), type=Manifest)
    except msgspec.DecodeError as error:
        raise NotWhole(f"the manifest cannot be read: {error}") from error
    for name, entry in manifest.files.items():
        path = folder / name
        size = _read(path, name, lambda path: path.stat().st_size)
        if size != entry.size:
            raise NotWhole(f"{name} has {size} bytes instead of {entry.size}")
        if _read(path, name, file_entry) != entry:
            raise NotWhole(f"{name} has other content than was written")
    if not manifest.files:
        raise NotWhole("the manifest names no file")
    return manifest


def _read(path: Path, name: str, read: Callable[[Path], T]) -> T:
    """What `read` makes of `path`; raises NotWhole if there is no such file, OSError if it cannot be read."""
    try:
        return _retrying(lambda: read(path))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise NotWhole(f"{name} is missing") from error
    except PermissionError as error:
        if path.is_dir():  # Windows' word for a folder where a file was
            raise NotWhole(f"{name} is missing") from error
        raise
