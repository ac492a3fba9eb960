"""The place stage: a finished file or folder gets a second place, by a link where the disk can, else by a copy.

Only what is large is linked: nobody edits weights in place, but somebody may edit a configuration, and the other place
must not change with it.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

from backpropagate_protocol.errors import ExportError
from backpropagate_protocol.jobs import PlaceJob
from backpropagate_protocol.messages import Made
from backpropagate_runner.export import adapter
from backpropagate_runner.export.digests import digest_of, files_below, folder_digest
from backpropagate_runner.export.stage import Stage, new_file, new_folder
from backpropagate_runner.export.whole import check_whole

_LINKED = 16 << 20  # bytes from which on a file is linked
_CHUNK = 16 << 20
# What a file system or a kernel answers that cannot copy by itself.
_CANNOT = frozenset(
    {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF, errno.ETXTBSY}
)

Progress = Callable[[int], None]


def place(job: PlaceJob, stage: Stage) -> Made:
    """What was at `out` is replaced when the new is whole; if it is the same already it is left alone.

    Raises ExportError if there is nothing at `source`, what `open_adapter` raises for an adapter that is no good, and
    OSError if the disk does not take it.
    """
    source, out = Path(job.source), Path(job.out)
    if not source.exists():
        raise ExportError(f"there is nothing at {source} that could be placed at {out}")
    if (source / adapter.CONFIG).is_file():
        adapter.open_adapter(job.source)
    elif source.is_dir():
        check_whole(source, "DEP_MODEL_LOAD_FAILED")
    files = files_below(source) if source.is_dir() else {source.name: source}
    total = sum(path.stat().st_size for path in files.values())
    done = 0

    def progress(more: int) -> None:
        nonlocal done
        done += more
        stage.advance(min(done, total), total, out.name)

    digests = {}
    for name, path in files.items():
        digests[name] = digest_of(path)
        stage.advance(0, total, name)
    if source.is_dir():
        if not (out.is_dir() and _same_folder(out, digests)):
            with new_folder(out) as folder:
                for name, path in files.items():
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    _second(path, folder / name, progress)
        return Made(job.out, total, folder_digest(digests))
    if not _same_file(source, out, digests[source.name]):
        with new_file(out) as partial:
            _second(source, partial, progress)
    return Made(job.out, total, digests[source.name])


def _same_file(source: Path, out: Path, digest: str) -> bool:
    """Also for two names of one file, which a rename would leave both."""
    if not out.is_file():
        return False
    return out.samefile(source) or (out.stat().st_size == source.stat().st_size and digest_of(out) == digest)


def _same_folder(out: Path, digests: dict[str, str]) -> bool:
    there = files_below(out)
    return there.keys() == digests.keys() and all(digest_of(path) == digests[name] for name, path in there.items())


def _second(source: Path, target: Path, progress: Progress) -> None:
    size = source.stat().st_size
    # A file that may not be written cannot be made durable under another name either.
    if size >= _LINKED and os.access(source, os.W_OK):
        try:
            os.link(source.resolve(), target)
        except OSError:
            pass  # another disk, or one without links; if it is worse than that, the copy says so
        else:
            progress(size)
            return
    _copy(source, target, progress)


def _copy(source: Path, target: Path, progress: Progress) -> None:
    """The content, with the permissions of a new file; without moving it where the disk can share it."""
    with open(source, "rb") as read, open(target, "wb") as write:
        if sys.platform == "linux":
            try:
                while copied := os.copy_file_range(read.fileno(), write.fileno(), _CHUNK):
                    progress(copied)
            except OSError as error:
                if error.errno not in _CANNOT:
                    raise
        # From where that came to: both files stand there, and usually at the end.
        while block := read.read(_CHUNK):
            write.write(block)
            progress(len(block))
