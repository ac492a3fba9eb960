"""Drives one run from its spec to its end: one child at a time, whatever happens to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from backpropagate.outcome import Outcome
from backpropagate.sinks import Sink
from backpropagate_protocol.rundir import RunDir

__all__ = ["Outcome", "supervise", "supervise_main"]


def supervise(
    run_dir: RunDir,
    sinks: Sequence[Sink] = (),
    *,
    owner_pipe: bool = False,
    resumed: bool = False,
    gpu_script: Path | None = None,
) -> Outcome:
    """Runs it to its end and says how it ended. Blocks; must be called in the main thread of the process.

    owner_pipe: standard input is the owner's control pipe (lines `stop`, `kill`; end of file: the owner is gone).
    resumed: an earlier supervisor of this run ended; go on from the newest checkpoint.
    gpu_script: a series of sensor readings to play instead of the card's own (drills).

    Raises BusyError (STATE_BUSY) if output folder or GPU are taken, RunNotFoundError, and STATE_RUN_FINISHED as
    UserInputError; whatever happens later is in the Outcome.
    """
    raise NotImplementedError


def supervise_main(run_dir: Path, owner: bool) -> int:
    """What the hidden command `_supervise` runs: supervises without a display; returns the exit code.

    Whether it is a resume is seen from the journal: one that exists already belongs to an earlier supervisor.
    """
    return int(supervise(RunDir(run_dir), owner_pipe=owner, resumed=RunDir(run_dir).events.exists()).exit_code)
