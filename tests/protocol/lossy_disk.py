"""A Disk that remembers what was synced, and can show every folder that a crash may legally leave behind.

What a crash may lose, by the rules that durable.py relies on: the content of a file since it was last synced (it may be
whole, cut to nothing, or full of NULs), and every change of names in a folder since that folder was last synced.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from backpropagate_protocol.durable import Disk


@contextmanager
def no_descriptors() -> Iterator[None]:
    """While it lasts, this process cannot open a file. POSIX."""
    if sys.platform == "win32":
        raise NotImplementedError("there the number of open files is not limited so")
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    taken = []
    try:
        while True:
            try:
                taken.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                break
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Lost(Enum):
    """What became of content that was written and never synced."""

    NOTHING = "it was on the platter after all"
    ALL = "the file is empty"
    NULS = "the length was kept, the content was not"


@dataclass(eq=False)
class _File:
    now: bytes
    synced: bytes | None = None

    def after_crash(self, lost: Lost) -> bytes:
        if self.now == self.synced or lost is Lost.NOTHING:
            return self.now
        if lost is Lost.ALL:
            return self.synced or b""
        return bytes(len(self.now))


@dataclass(eq=False)
class _Folder:
    now: dict[str, _File | _Folder] = field(default_factory=dict)
    synced: dict[str, _File | _Folder] = field(default_factory=dict)


class LossyDisk(Disk):
    """Does the real work below `root`, keeps a model of it beside, and counts the points where it can crash.

    `crash_at` N: after N calls the power is gone, and the call raises PowerCut, as does every later one.
    """

    def __init__(self, root: Path, crash_at: int | None = None) -> None:
        self._root, self._crash_at = root, crash_at
        self.calls = 0
        self._tree = self._read(root)
        self._mark_synced(self._tree)

    def unsynced(self, folder: Path) -> None:
        """Declares what is below `folder` as written by others, without any sync."""
        parent = self._folder(folder.parent)
        parent.now[folder.name] = self._read(folder)

    # --- the calls that durable.py makes -------------------------------------------------------------------------

    def write(self, path: Path, data: bytes) -> None:
        self._tick()
        path.write_bytes(data)
        file = _File(data)
        self._folder(path.parent).now[path.name] = file
        self._tick()
        file.synced = data

    def sync_file(self, path: Path) -> None:
        self._tick()
        file = self._folder(path.parent).now[path.name]
        assert isinstance(file, _File)
        file.synced = file.now

    def sync_dir(self, path: Path) -> None:
        self._tick()
        folder = self._folder(path)
        folder.synced = dict(folder.now)

    def rename(self, source: Path, target: Path) -> None:
        self._tick()
        super().rename(source, target)
        moved = self._folder(source.parent).now.pop(source.name)
        self._folder(target.parent).now[target.name] = moved

    def remove(self, path: Path) -> None:
        if self._crash_at is not None and self.calls >= self._crash_at:
            raise PowerCut
        super().remove(path)
        if path.parent.exists():
            self._folder(path.parent).now.pop(path.name, None)

    # --- what is left ---------------------------------------------------------------------------------------------

    def images(self, into: Path) -> Iterator[Path]:
        """Every state that a crash at this moment may leave, one after the other, each in the folder it yields."""
        folders = list(self._folders(self._tree))
        for lost in Lost:
            for choice in itertools.product((True, False), repeat=len(folders)):
                kept = dict(zip(folders, choice, strict=True))
                image = into / "image"
                shutil.rmtree(image, ignore_errors=True)
                self._write_image(self._tree, image, kept, lost)
                yield image

    def _tick(self) -> None:
        if self._crash_at is not None and self.calls >= self._crash_at:
            raise PowerCut
        self.calls += 1

    def _read(self, path: Path) -> _Folder:
        entries = {p.name: self._read(p) if p.is_dir() else _File(p.read_bytes()) for p in path.iterdir()}
        return _Folder(now=dict(entries))

    def _mark_synced(self, folder: _Folder) -> None:
        folder.synced = dict(folder.now)
        for entry in folder.now.values():
            if isinstance(entry, _Folder):
                self._mark_synced(entry)
            else:
                entry.synced = entry.now

    def _folder(self, path: Path) -> _Folder:
        here = self._tree
        for part in path.relative_to(self._root).parts:
            entry = here.now.setdefault(part, _Folder())  # made by mkdir, which is nobody's promise
            assert isinstance(entry, _Folder)
            here = entry
        return here

    def _folders(self, folder: _Folder) -> Iterator[_Folder]:
        """Those whose names are not all synced: only they can be lost in two ways."""
        if folder.now != folder.synced:
            yield folder
        seen = {id(entry): entry for entry in (*folder.now.values(), *folder.synced.values())}
        for entry in seen.values():
            if isinstance(entry, _Folder):
                yield from self._folders(entry)

    def _write_image(self, folder: _Folder, path: Path, kept: dict[_Folder, bool], lost: Lost) -> None:
        path.mkdir(parents=True, exist_ok=True)
        entries = folder.now if kept.get(folder, True) else folder.synced
        for name, entry in entries.items():
            if isinstance(entry, _Folder):
                self._write_image(entry, path / name, kept, lost)
            else:
                (path / name).write_bytes(entry.after_crash(lost))


class PowerCut(BaseException):
    """Not an Exception: no handler of ours may believe that it can go on."""


class FailingDisk(Disk):
    """The real disk, except that call number `fail_at` (1 = the first) fails with `error`."""

    def __init__(self, fail_at: int, error: OSError) -> None:
        self._fail_at, self._error = fail_at, error
        self.calls = 0
        self.synced_after_failure: list[Path] = []
        self._failed: Path | None = None

    def _tick(self, path: Path) -> None:
        self.calls += 1
        if self.calls == self._fail_at:
            self._failed = path
            raise self._error
        if self._failed == path:
            self.synced_after_failure.append(path)

    def write(self, path: Path, data: bytes) -> None:
        path.write_bytes(data[: len(data) // 2])  # what a full disk leaves: a part
        self._tick(path)
        super().write(path, data)

    def sync_file(self, path: Path) -> None:
        self._tick(path)
        super().sync_file(path)

    def sync_dir(self, path: Path) -> None:
        self._tick(path)
        super().sync_dir(path)

    def rename(self, source: Path, target: Path) -> None:
        self._tick(source)
        super().rename(source, target)
