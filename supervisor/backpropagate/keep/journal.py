"""`events.jsonl`: append what happened, read it back, follow it while it grows.

1. Every line that was whole before a crash is readable after it; a torn last line is skipped, and the next writer begins
   on a new one.
2. All events are written, except that steps are thinned: every one at first, later every 2nd, 4th, … so that the file of a
   run of any length stays small. The newest step is always on disk before any other event and at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import msgspec

from backpropagate.events import Event, LinkStarted, PhaseEntered, RunCreated, RunEnded, RunResumed, Step
from backpropagate_protocol.durable import DISK, Disk
from backpropagate_protocol.rundir import RunDir

_LINES_PER_STRIDE = 2000
_QUIET_SECONDS = 15.0  # a thinned run of slow steps still writes a line this often, for those who follow it

_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
_encoder = msgspec.json.Encoder()


class Journal:
    """Appends to one run's `events.jsonl`. Only the supervisor of the run may have one open."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic, disk: Disk = DISK) -> None:
        self._path, self._clock, self._disk = path, clock, disk
        self._file: BinaryIO | None = self._open()
        self._stride, self._lines = 1, 0
        self._pending: Step | None = None
        self._newest: int | None = None  # the step of the newest line, if it is one of a step
        self._last_line = clock()
        self.lost = 0  # events that a full or failing disk did not take

    def append(self, event: Event) -> None:
        """Writes the event. All but steps and phases are on the disk itself when this returns."""
        if isinstance(event, Step):
            self._step(event)
            return
        self._flush_step()
        self._newest = None
        self._write(_encoder.encode(event) + b"\n")
        if not isinstance(event, PhaseEntered):
            self._sync()

    def _step(self, step: Step) -> None:
        now = self._clock()
        said_again = step.step == self._newest  # who says the same for ever fills no disk with it
        if (said_again or step.step % self._stride) and now - self._last_line < _QUIET_SECONDS:
            self._pending = step
            return
        self._pending, self._newest = None, step.step
        self._last_line = now
        self._lines += 1
        if self._lines % _LINES_PER_STRIDE == 0:
            self._stride *= 2
        self._write(_encoder.encode(step) + b"\n")

    def _flush_step(self) -> None:
        if self._pending is not None:
            self._write(_encoder.encode(self._pending) + b"\n")
            self._pending = None

    def _open(self) -> BinaryIO:
        torn = _ends_torn(self._path)
        file = open(self._path, "ab", buffering=0)  # noqa: SIM115 - closed by close()
        if torn:
            try:
                file.write(b"\n")
            except OSError:
                file.close()  # as full as before: every event tries again, and must not cost a descriptor each time
                raise
        return file

    def _write(self, line: bytes) -> None:
        """A disk that does not take it costs this event, not the run; the next one is tried on a newly opened file."""
        try:
            if self._file is None:
                self._file = self._open()
            if self._file.write(line) != len(line):
                self._reopen_later()
        except OSError:
            self._reopen_later()

    def _sync(self) -> None:
        try:
            if self._file is not None:
                self._disk.fsync(self._file.fileno())
        except OSError:
            self._reopen_later()

    def _reopen_later(self) -> None:
        self.lost += 1
        if self._file is not None:
            self._file.close()
            self._file = None

    def close(self) -> None:
        self._flush_step()
        self._sync()
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _ends_torn(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            if file.seek(0, 2) == 0:
                return False
            file.seek(-1, 2)
            return file.read(1) != b"\n"
    except FileNotFoundError:
        return False


def decode_line(line: bytes) -> Event | None:
    """The event of one line; None for a torn line, and for an event that this version does not know."""
    try:
        return _decoder.decode(line)
    except msgspec.DecodeError:
        return None


def read(path: Path) -> Iterator[Event]:
    """All events, in order; nothing if there is no file."""
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below
    except FileNotFoundError:
        return
    with file:
        for line in file:
            event = decode_line(line)
            if event is not None:
                yield event


OF_ONE_RUN = (RunCreated, RunResumed, RunEnded)  # a campaign's watchers are told LinkStarted and LinkEnded instead


class Follower:
    """Reads a growing `events.jsonl` piece by piece: each `poll` gives the events that came since the last one.

    Of a campaign it reads those of its runs as well, each from where the campaign says that it begins.
    """

    def __init__(self, path: Path, *, from_end: bool = False, offset: int = 0) -> None:
        self._path, self._offset, self._rest = path, offset, b""
        self._link: Follower | None = None
        if from_end and path.exists():
            self._offset = path.stat().st_size

    def poll(self) -> list[Event]:
        found: list[Event] = []
        for event in self._own():
            found += self._of_link()  # what a run had to say comes before what the campaign says of it
            found.append(event)
            if isinstance(event, LinkStarted):
                runs = RunDir(self._path.parent).output
                self._link = Follower(runs.run(event.link_run).events, offset=event.offset)
        return found + self._of_link()

    def _of_link(self) -> list[Event]:
        events = self._link.poll() if self._link is not None else []
        return [event for event in events if not isinstance(event, OF_ONE_RUN)]

    def _own(self) -> list[Event]:
        try:
            with open(self._path, "rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [event for line in lines if (event := decode_line(line)) is not None]
