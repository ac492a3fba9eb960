"""One more run for a finished campaign: decided and written down while nobody else can work in its folder."""

from __future__ import annotations

import time
from collections.abc import Callable

from backpropagate.events import CampaignExtended
from backpropagate.keep import history, journal, locks, runs
from backpropagate.keep.journal import Journal
from backpropagate.wishes.campaign_again import Extension
from backpropagate_protocol.errors import BusyError, ConfigurationError, DiskFullError, UserInputError
from backpropagate_protocol.rundir import RunDir

_ASK_AGAIN_SECONDS = 1.0
_BEGINS_WITHIN = 60.0  # seconds from the new run's line to the lock of the supervisor that trains it


def extend(
    run_dir: RunDir,
    wanted: Callable[[], Extension],
    *,
    wait: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Extension:
    """Gives a campaign one more run, after all that it has; `supervise` then goes on with it.

    wanted: what to train on. It is asked under the lock, when the campaign is what it will be. wait: a folder that is taken
    is asked for again every second; `tell` is told so once.

    Raises BusyError while a supervisor works in the folder and nobody wants to wait, UserInputError for a run that is no
    campaign, ConfigurationError for a campaign that is not finished, ConfigurationError (CONFIG_OUTPUT_UNWRITABLE) or
    DiskFullError if it cannot be written down, and what `wanted` raises.
    """
    told = False
    while True:
        try:
            return _extended(run_dir, wanted)
        except BusyError as busy:
            if not wait:
                raise
            if not told:
                tell(f"waiting: {busy.message}")
                told = True
            time.sleep(_ASK_AGAIN_SECONDS)


def _extended(run_dir: RunDir, wanted: Callable[[], Extension]) -> Extension:
    spec = runs.load_spec(run_dir)
    if spec.kind != "campaign":
        raise UserInputError(f"run {run_dir.run_id} is no campaign", run_id=run_dir.run_id)
    with locks.hold(run_dir.output.lock, spec.run_id, f"the output folder {run_dir.output.path}"):
        _finished(run_dir)
        one_more = wanted()
        with Journal(run_dir.events) as lines:
            lines.append(CampaignExtended(time=time.time(), run_id=spec.run_id, data=one_more.data, name=one_more.name))
            lost = lines.lost
        if lost:
            raise DiskFullError(f"{run_dir.events} takes no line", run_id=spec.run_id)
        history.record(run_dir.output, history.row_of(run_dir))
    return one_more


def _finished(run_dir: RunDir) -> None:
    """By its journal, which is written before the index of the history."""
    if history.row_of(run_dir).status == "completed":
        return
    *_, last = [None, *journal.read(run_dir.events)]
    if isinstance(last, CampaignExtended) and 0 <= time.time() - last.time < _BEGINS_WITHIN:
        raise BusyError(
            f"campaign {run_dir.run_id[:8]} was just given one more run, which is about to begin", run_id=run_dir.run_id
        )
    raise ConfigurationError(
        f"campaign {run_dir.run_id[:8]} is not finished; only then can a run be added",
        suggestion=f"Finish it first: {runs.resuming(run_dir)}",
        run_id=run_dir.run_id,
    )
