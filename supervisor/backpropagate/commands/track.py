"""`track`: tells the trackers of a run that is over what they could not be told while it ran."""

from __future__ import annotations

import click

from backpropagate.commands.flags import Command, from_table
from backpropagate.screen import current
from backpropagate.wishes.options import Value
from backpropagate.wishes.settings import Settings
from backpropagate_protocol.errors import UserInputError, error_for

_PATIENCE = 150.0  # seconds; a tracker's process gives up by itself a little before


@click.command(cls=Command)
@click.argument("run")
@from_table("training.output_dir")
def track(run: str, output_dir: Value) -> None:
    """Tell a run's trackers what they were not told.

    RUN is a run id, any unique prefix of one, or `latest`. Each of its trackers is told what it does not have yet, from the
    journal; nothing is told twice. For a run that is over: one that runs tells its trackers by itself.
    """
    from backpropagate.keep import locks, runs
    from backpropagate.track.trackers import Trackers

    screen = current()
    run_dir = runs.find(Settings({"output_dir": output_dir}).text("training.output_dir"), run)
    spec = runs.load_spec(run_dir)
    if not spec.report_to:
        raise UserInputError(
            "the run has no trackers", suggestion="Name them when a run is begun: --report-to.", run_id=run_dir.run_id
        )
    with locks.hold(run_dir.output.lock, spec.run_id, f"the output folder {run_dir.output.path}"):
        untold = Trackers(run_dir, spec.report_to).told_again(_PATIENCE, screen.note)
    if untold:
        raise error_for(
            "DEP_TRACKER_UNREACHABLE", f"{' and '.join(untold)} could not be told all of the run", run_id=run_dir.run_id
        )
    screen.data(
        {"run_id": run_dir.run_id, "told": list(spec.report_to)}, f"{', '.join(spec.report_to)}: told all of the run"
    )
