"""Supervises a run now or, if the user said --wait, as soon as its output folder is free."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from backpropagate.drive.supervise import supervise
from backpropagate.outcome import Outcome
from backpropagate.watch.sinks import Sink
from backpropagate_protocol.errors import BusyError, TrainingAbortedError
from backpropagate_protocol.rundir import RunDir

_ASK_AGAIN_SECONDS = 1.0


def supervise_when_free(
    run_dir: RunDir,
    sinks: Sequence[Sink],
    tell: Callable[[str], None],
    *,
    owner_pipe: bool = False,
    resumed: bool = False,
    wait: bool = False,
    gpu_script: Path | None = None,
) -> Outcome:
    """As `supervise`. With `wait`, a folder that is taken is asked for again every second; `tell` is told so once, and what `supervise` tells it.

    Raises BusyError if it is taken and nobody wants to wait; TrainingAbortedError if the owner, while we wait, wants it
    to end or is gone. Ctrl-C ends the waiting as it ends any command.
    """
    told = False
    while True:
        try:
            return supervise(run_dir, sinks, owner_pipe=owner_pipe, resumed=resumed, gpu_script=gpu_script, tell=tell)
        except BusyError as busy:
            if not wait:
                raise
            if not told:
                tell(f"waiting: {busy.message}")
                told = True
            if not owner_pipe:
                time.sleep(_ASK_AGAIN_SECONDS)
            elif _owner_speaks():
                raise TrainingAbortedError(
                    f"stopped while it waited: {busy.message}",
                    suggestion="Start it again when the folder is free.",
                    run_id=run_dir.run_id,
                ) from busy


# What the owner says is not read here, only seen: if the run begins after all, it is there for its supervisor to read.

if sys.platform == "win32":
    import ctypes
    import msvcrt
    from ctypes import wintypes

    _peek = ctypes.WinDLL("kernel32", use_last_error=True).PeekNamedPipe
    _peek.restype = wintypes.BOOL
    _peek.argtypes = [wintypes.HANDLE, wintypes.LPVOID, wintypes.DWORD, wintypes.LPDWORD, wintypes.LPDWORD, wintypes.LPDWORD]  # fmt: skip

    def _owner_speaks() -> bool:
        """Whether there is a wish in the control pipe, or nobody at its other end; after a pause of a second."""
        time.sleep(_ASK_AGAIN_SECONDS)  # a pipe cannot be waited for there
        waiting = wintypes.DWORD(0)
        there = _peek(msvcrt.get_osfhandle(0), None, 0, None, ctypes.byref(waiting), None)
        return not there or waiting.value > 0

else:
    import select

    def _owner_speaks() -> bool:
        """Whether there is a wish in the control pipe, or nobody at its other end; waits for a second at most."""
        return bool(select.select([0], [], [], _ASK_AGAIN_SECONDS)[0])
