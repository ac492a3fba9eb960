"""Whether the files of a run are still those that it began with. Can read all of them: to be done beside the training."""

from __future__ import annotations

import hashlib
import stat
import sys
from datetime import datetime
from pathlib import Path

from backpropagate.judge.start import Start
from backpropagate_protocol.prepared import ABOUT
from backpropagate_protocol.spec import DataSpec, RunSpec

_COARSE = 2.0  # seconds: what clocks of file systems are rounded to


def warning(spec: RunSpec, start: Start) -> str | None:
    """What to say if a resume goes on with rows that are no longer those of the files.

    None, too, where nobody can know: rows of the hub, a file that is gone or cannot be read; and where the rows have to be
    read again, since the child then refuses others by itself.
    """
    if start.prepared is None or not start.source_digest or not (Path(start.prepared.path) / ABOUT).is_file():
        return None
    try:
        touched = _touched(spec.data, datetime.fromisoformat(spec.created).timestamp())
        if not touched or _digest(spec.data) == start.source_digest:
            return None
    except (OSError, ValueError):
        return None
    names = ", ".join(path.name for path in touched)
    return (
        f"{names} {'was' if len(touched) == 1 else 'were'} changed since this run began; it goes on with the rows that it "
        "began with. To train on what is there now, start a new run, or give a campaign one more: "
        "`backprop multi-run --append DATA`"
    )


def _sources(data: DataSpec) -> list[str]:
    return [data.source, *(portion.source for portion in data.replay)]


def _touched(data: DataSpec, since: float) -> list[Path]:
    """The files that may be others than they were at that time. Raises OSError for what is no file.

    A copy can keep the time of a change, but on POSIX not the time at which the file itself became what it is.
    """
    found = []
    for path in dict.fromkeys(map(Path, _sources(data))):
        if not path.is_absolute():
            raise FileNotFoundError(f"{path} is not of this machine")
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path} is not a regular file")
        if sys.platform == "win32" or max(status.st_mtime, status.st_ctime) > since - _COARSE:
            found.append(path)
    return found


def _digest(data: DataSpec) -> str:
    """As the child makes it: of the one file, or of the digests of all that are mixed. Raises OSError."""
    of_file: dict[str, str] = {}
    for source in _sources(data):
        if source not in of_file:
            with open(source, "rb") as file:
                of_file[source] = hashlib.file_digest(file, "sha256").hexdigest()
    digests = [of_file[source] for source in _sources(data)]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest() if data.replay else digests[0]
