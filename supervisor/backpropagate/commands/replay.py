"""`replay`: an earlier run once more, with the same configuration and, as a digest says, the same data."""

from __future__ import annotations

import click

from backpropagate.commands.flags import Command, from_table
from backpropagate.screen import current
from backpropagate.wishes.options import Value
from backpropagate.wishes.settings import Settings


@click.command(cls=Command)
@click.argument("run")
@from_table("training.output_dir", "safety.wait")
@click.option("--changed-data", is_flag=True, help="Train although the data are not what they were.")
@click.option("--detach", is_flag=True, help="Start the run and return; it goes on without this terminal.")
def replay(run: str, changed_data: bool, detach: bool, **given: Value) -> int:
    """Train an earlier run once more, as a new run.

    RUN is a run id (of a training or of a campaign), any unique prefix of one, or `latest`. Configuration and data are those
    of RUN; data that changed since are refused.
    """
    from backpropagate.commands.supervising import begin
    from backpropagate.wishes.replay_run import replay_run
    from backpropagate.wishes.sources import run_that_trained

    screen = current()
    settings = Settings(given)
    screen.verbose = screen.verbose or settings.flag("debug")
    run_dir = run_that_trained(settings.text("training.output_dir"), run)
    again = replay_run(run_dir, changed_data=changed_data, detached=detach, verbose=screen.verbose)
    for notice in again.notices:
        screen.note(f"note: {notice}")
    old, new = run_dir.run_id[:8], again.spec.run_id[:8]
    alike = "configuration and data are the same" if again.same else "the configuration is the same"
    screen.note(f"run {new} replays {old}: {alike}; compare them with `backprop diff-runs {old} {new}`")
    return begin(screen, again.spec, detach)
