"""What a drilled run may have left behind, in the system and on the disk: there should be nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path

from backpropagate import checkpoints
from backpropagate.doors.process import RUN_ID_VARIABLE
from backpropagate.doors.standing import standing
from backpropagate.keep import history, locks
from backpropagate_protocol import durable
from backpropagate_protocol.durable import NotWhole
from backpropagate_protocol.errors import BackpropagateError
from backpropagate_protocol.lifeline import is_alive
from backpropagate_protocol.rundir import PARTIAL, RunDir

_GONE_PATIENCE = 10.0


def gone(pid: int) -> bool:
    """Whether the process is dead; one that its new parent has not yet fetched is."""
    if sys.platform == "linux":
        found = standing(pid)
        return found is None or not found.runs
    return not is_alive(pid)


def when_gone(pids: Iterable[int]) -> float | None:
    """Waits until all of them are, and says when that was, in seconds since 1970; None if it takes too long."""
    deadline = time.monotonic() + _GONE_PATIENCE
    left = list(pids)
    while left := [pid for pid in left if not gone(pid)]:
        if time.monotonic() > deadline:
            return None
        time.sleep(0.001)
    return time.time()


def orphans(run_dir: RunDir, known: Iterable[int]) -> list[int]:
    """Processes of the run that live although no supervisor does: `known` ones, and on Linux all that carry its mark.

    A process has ten seconds to go. Helpers have no mark of their own, but what they were started with names the run.
    """
    when_gone(known)
    marked = _marked(run_dir.run_id) if sys.platform == "linux" else set()
    when_gone(marked)
    return sorted(pid for pid in {*known, *marked} if not gone(pid))


def _marked(run_id: str) -> set[int]:
    mark = f"{RUN_ID_VARIABLE}={run_id}".encode()
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            started_with = (process / "cmdline").read_bytes()
            if mark in (process / "environ").read_bytes().split(b"\0") or run_id.encode() in started_with:
                found.add(int(process.name))
        except (OSError, ValueError):
            continue  # it ended while we looked, or is another user's
    return found


def on_disk(run_dir: RunDir) -> list[str]:
    """Held locks, half-written files, a run that cannot be read, a newest checkpoint that is not whole."""
    output = run_dir.output
    found = [f"{output.lock.name} is still held"] if locks.holder_of(output.lock) is not None else []
    unfinished = (path for path in output.path.rglob("*") if path.name.endswith((PARTIAL, ".tmp", ".holder")))
    found += [f"{path.relative_to(output.path)} was left" for path in unfinished]
    if run_dir.staging.exists() and any(path.is_file() for path in run_dir.staging.rglob("*")):
        found.append(f"files were left in {run_dir.staging.name}")
    try:
        history.show(run_dir)
    except BackpropagateError as error:
        found.append(f"the run cannot be read: {error.message}")
    kept = checkpoints.steps(run_dir)
    if not kept:
        found.append("there is no checkpoint")
    for folder in [run_dir.checkpoint(kept[-1])] if kept else []:
        try:
            durable.verify_dir(folder)
        except (NotWhole, OSError) as error:
            found.append(f"{folder.name} is not whole: {error}")
    return found
