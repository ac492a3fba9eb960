"""A Disk that remembers what was synced, and can show every folder that a crash may legally leave behind.

What a crash may lose, by the rules that durable.py relies on: the content of a file since it was last synced (it may be
whole, cut, empty, or full of NULs), and every change of names in a folder since that folder was last synced, each by
itself: a later one may have reached the disk without an earlier one. Only a rename inside one folder is one change.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
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
    HALF = "the first part is there"


@dataclass(eq=False)
class _File:
    now: bytes
    synced: bytes | None = None

    def after_crash(self) -> set[bytes]:
        return {self._after(lost) for lost in Lost}

    def _after(self, lost: Lost) -> bytes:
        if self.now == self.synced or lost is Lost.NOTHING:
            return self.now
        if lost is Lost.ALL:
            return self.synced or b""
        return bytes(len(self.now)) if lost is Lost.NULS else self.now[: len(self.now) // 2]


@dataclass(eq=False)
class _Folder:
    """Each change is what one call did to the names here: all of it reached the disk, or nothing."""

    now: dict[str, _File | _Folder] = field(default_factory=dict)
    synced: dict[str, _File | _Folder] = field(default_factory=dict)
    changes: list[dict[str, _File | _Folder | None]] = field(default_factory=list)

    def change(self, names: dict[str, _File | _Folder | None]) -> None:
        self.changes.append(names)
        _apply(self.now, names)

    def sync(self) -> None:
        self.synced, self.changes = dict(self.now), []

    def after_crash(self) -> Iterator[dict[str, _File | _Folder]]:
        """The names since the last sync: any of the changes may have got to the disk without the others."""
        for kept in itertools.product((True, False), repeat=len(self.changes)):
            names = dict(self.synced)
            for change in itertools.compress(self.changes, kept):
                _apply(names, change)
            yield names


def _apply(names: dict[str, _File | _Folder], change: dict[str, _File | _Folder | None]) -> None:
    for name, entry in change.items():
        if entry is None:
            names.pop(name, None)
        else:
            names[name] = entry


Entries = tuple[tuple[str, "Tree"], ...]
Tree = bytes | Entries  # a file's content, or what is in a folder by name


def write_tree(tree: Tree, path: Path) -> None:
    """Lays it out on the real disk, for those who read files."""
    if isinstance(tree, bytes):
        path.write_bytes(tree)
        return
    path.mkdir(parents=True)
    for name, entry in tree:
        write_tree(entry, path / name)


class LossyDisk(Disk):
    """Does the real work below `root`, keeps a model of it beside, and counts the points where it can crash.

    `crash_at` N: after N calls the power is gone, and the call raises PowerCut, as does every later one. `before_call`
    is called at each of those points: what a crash there would leave can be asked with `states`.
    """

    def __init__(self, root: Path, crash_at: int | None = None, before_call: Callable[[], None] = lambda: None) -> None:
        self._root, self._crash_at, self._before_call = root, crash_at, before_call
        self.calls = 0
        self._tree = self._read(root)
        self._mark_synced(self._tree)

    def unsynced(self, folder: Path) -> None:
        """Declares what is below `folder` as written by others, without any sync."""
        self._folder(folder.parent).change({folder.name: self._read(folder)})

    # --- the calls that durable.py makes -------------------------------------------------------------------------

    def write(self, path: Path, data: bytes) -> None:
        self._tick()
        path.write_bytes(data)
        file = _File(data)
        self._folder(path.parent).change({path.name: file})
        self._tick()
        file.synced = data

    def sync_file(self, path: Path) -> None:
        self._tick()
        file = self._folder(path.parent).now[path.name]
        assert isinstance(file, _File)
        file.synced = file.now

    def sync_dir(self, path: Path) -> None:
        self._tick()
        self._folder(path).sync()

    def rename(self, source: Path, target: Path) -> None:
        self._tick()
        super().rename(source, target)
        here, there = self._folder(source.parent), self._folder(target.parent)
        moved = here.now[source.name]
        if here is there:
            here.change({source.name: None, target.name: moved})
        else:
            here.change({source.name: None})
            there.change({target.name: moved})

    def remove(self, path: Path) -> None:
        self._tick()
        super().remove(path)
        parent = self._folder(path.parent)
        gone = parent.now.get(path.name)
        if isinstance(gone, _Folder):
            self._emptied(gone)
        if gone is not None:
            parent.change({path.name: None})

    # --- what is left ---------------------------------------------------------------------------------------------

    def states(self, path: Path) -> set[Entries]:
        """Everything that a crash at this moment may leave in the folder `path`."""
        return self._in_folder(self._folder(path))

    def _in_folder(self, folder: _Folder) -> set[Entries]:
        found: set[Entries] = set()
        for names in folder.after_crash():
            each = [self._of_entry(entry) for entry in names.values()]
            found |= {tuple(sorted(zip(names, states, strict=True))) for states in itertools.product(*each)}
        return found

    def _of_entry(self, entry: _File | _Folder) -> set[Tree]:
        return set(entry.after_crash()) if isinstance(entry, _File) else set(self._in_folder(entry))

    def _tick(self) -> None:
        if self._crash_at is not None and self.calls >= self._crash_at:
            raise PowerCut
        self._before_call()
        self.calls += 1

    def _read(self, path: Path) -> _Folder:
        folder = _Folder()
        for entry in sorted(path.iterdir()):
            folder.change({entry.name: self._read(entry) if entry.is_dir() else _File(entry.read_bytes())})
        return folder

    def _mark_synced(self, folder: _Folder) -> None:
        folder.sync()
        for entry in folder.now.values():
            if isinstance(entry, _Folder):
                self._mark_synced(entry)
            else:
                entry.synced = entry.now

    def _emptied(self, folder: _Folder) -> None:
        for name, entry in list(folder.now.items()):
            if isinstance(entry, _Folder):
                self._emptied(entry)
            folder.change({name: None})

    def _folder(self, path: Path) -> _Folder:
        here = self._tree
        for part in path.relative_to(self._root).parts:
            if part not in here.now:
                here.change({part: _Folder()})  # made by mkdir, which is nobody's promise
            entry = here.now[part]
            assert isinstance(entry, _Folder)
            here = entry
        return here


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
