"""Supervises a run now or, if the user said --wait, as soon as its output folder is free."""

from __future__ import annotations

import time
from collections.abc import Sequence

from backpropagate.outcome import Outcome
from backpropagate.sinks import Sink
from backpropagate.supervise import supervise
from backpropagate_protocol.errors import BusyError
from backpropagate_protocol.rundir import RunDir

_ASK_AGAIN_SECONDS = 1.0


def supervise_when_free(
    run_dir: RunDir, sinks: Sequence[Sink], *, owner_pipe: bool = False, resumed: bool = False, wait: bool = False
) -> Outcome:
    """As `supervise`. A new run has the wish to wait in its spec; a resumed one may have it only now."""
    while True:
        try:
            return supervise(run_dir, sinks, owner_pipe=owner_pipe, resumed=resumed)
        except BusyError:
            if not wait:
                raise
            time.sleep(_ASK_AGAIN_SECONDS)
