"""The process of one tracker: reads a run's journal as it grows, and tells the tracker what it does not have yet.

It ends when its standard input does: that is the supervisor's word that nothing more comes, or its death. Whatever goes wrong
is left in told.py's file as one line; the traceback goes to trackers.log.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import assert_never

from backpropagate.keep import runs
from backpropagate.keep.journal import Follower
from backpropagate.track import told
from backpropagate.track.telling import Ended, Entry, Facts, Note, Telling, Values
from backpropagate.track.told import Told
from backpropagate.track.tracker import Subject, Tracker, open_tracker
from backpropagate_protocol.redact import redact
from backpropagate_protocol.rundir import RunDir

_POLL_SECONDS = 0.5
_FLUSH_SECONDS = 5.0
_LAST_SECONDS = 120.0  # then it ends, whatever its tracker is still busy with


class Attendant:
    """One tracker and what it has been told."""

    def __init__(self, name: str, run_dir: RunDir, owner_gone: threading.Event) -> None:
        self._path, self._owner_gone = run_dir.told(name), owner_gone
        self._told = told.load(self._path)
        self._tracker: Tracker = open_tracker(name, Subject(runs.load_spec(run_dir), run_dir))
        if self._tracker.whole:
            self._told = Told()
        self._told.problem, self._told.kept = "", self._tracker.kept
        told.save(self._path, self._told)
        self._follower, self._telling = Follower(run_dir.events), Telling()
        self._notes, self._changed = 0, False
        self._ended: Ended | None = None

    def attend(self) -> None:
        """Blocks until the run's supervisor has said its last, or is gone."""
        flushed = time.monotonic()
        while True:
            last_look = self._owner_gone.is_set()  # asked before reading: what it wrote before it went is read
            for event in self._follower.poll():
                for entry in self._telling.see(event):
                    self._take(entry)
            if last_look:
                break
            if self._changed and time.monotonic() - flushed >= _FLUSH_SECONDS:
                self._flush()
                flushed = time.monotonic()
            self._owner_gone.wait(_POLL_SECONDS)
        self._tracker.close(self._ended)
        told.save(self._path, self._told)

    def _take(self, entry: Entry) -> None:
        self._ended = None  # if more comes, an earlier supervisor's end was not the run's
        match entry:
            case Values():
                fresh = self._told.fresh(entry)
                if fresh.values:
                    self._tracker.values(fresh)
                    self._changed = True
            case Note():
                self._notes += 1
                new = self._notes > self._told.notes
                self._tracker.note(entry, new=new)
                self._told.notes = max(self._notes, self._told.notes)
                self._changed = self._changed or new
            case Facts():
                self._tracker.facts(entry.facts)
                self._changed = True
            case Ended():
                self._ended = entry
            case _:
                assert_never(entry)

    def _flush(self) -> None:
        self._tracker.flush()
        told.save(self._path, self._told)
        self._changed = False


def _wait_for_owner(owner_gone: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    owner_gone.set()
    time.sleep(_LAST_SECONDS)
    os._exit(1)


def _give_up(path: Path, error: Exception) -> None:
    known = told.load(path)
    known.problem = redact(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
    told.save(path, known)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("tracker")
    parser.add_argument("run_dir", type=Path)
    options = parser.parse_args()
    run_dir, owner_gone = RunDir(options.run_dir), threading.Event()
    threading.Thread(target=_wait_for_owner, args=(owner_gone,), daemon=True).start()
    try:
        with told.held(run_dir.told(options.tracker), _LAST_SECONDS):
            Attendant(options.tracker, run_dir, owner_gone).attend()
    except Exception as error:  # noqa: BLE001 - of whatever library: it is this process that fails, and nothing else
        sys.stderr.write(redact(traceback.format_exc()))
        sys.stderr.flush()
        with suppress(OSError):
            _give_up(run_dir.told(options.tracker), error)
        os._exit(1)  # what its library still has in its threads must not keep it


if __name__ == "__main__":
    main()
