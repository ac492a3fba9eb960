"""Supervises a run now or, if the user said --wait, as soon as its output folder is free."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence

from backpropagate.outcome import Outcome
from backpropagate.sinks import Sink
from backpropagate.supervise import supervise
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
) -> Outcome:
    """As `supervise`. With `wait`, a folder that is taken is asked for again every second; `tell` is told so once.

    Raises BusyError if it is taken and nobody wants to wait; TrainingAbortedError if the owner, while we wait, wants it
    to end or is gone. Ctrl-C ends the waiting as it ends any command.
    """
    pause: Callable[[], bool] | None = None
    while True:
        try:
            return supervise(run_dir, sinks, owner_pipe=owner_pipe, resumed=resumed)
        except BusyError as busy:
            if not wait:
                raise
            if pause is None:
                tell(f"waiting: {busy.message}")
                pause = _until_the_owner_speaks() if owner_pipe else _sleep
            if pause():
                raise TrainingAbortedError(
                    f"stopped while it waited: {busy.message}",
                    suggestion="Start it again when the folder is free.",
                    run_id=run_dir.run_id,
                ) from busy


def _sleep() -> bool:
    time.sleep(_ASK_AGAIN_SECONDS)
    return False


def _until_the_owner_speaks() -> Callable[[], bool]:
    """A pause that ends early, and with True, once there is a wish in the control pipe or the owner is gone.

    A thread passes the pipe on to a second one, which takes its place as descriptor 0: so the run that begins at last
    reads every wish from there, also one that came between the last pause and its beginning. (Waiting for a descriptor
    and a time at once would need another way on Windows.)
    """
    from_owner = os.dup(0)
    for_the_run, pass_on = os.pipe()
    os.dup2(for_the_run, 0)
    os.close(for_the_run)
    spoken = threading.Event()

    def listen() -> None:
        try:
            while data := os.read(from_owner, 4096):
                os.write(pass_on, data)
                spoken.set()
        except OSError:
            pass  # an owner that broke off is gone, too
        finally:
            spoken.set()
            os.close(pass_on)

    threading.Thread(target=listen, daemon=True).start()
    return lambda: spoken.wait(_ASK_AGAIN_SECONDS)
