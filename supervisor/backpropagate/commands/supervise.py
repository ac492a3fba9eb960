"""The hidden command that `Trainer` and `--detach` start: the supervisor of one run, in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from backpropagate.commands.flags import Command
from backpropagate.screen import current
from backpropagate_protocol.rundir import RunDir


@click.command(cls=Command, hidden=True)
@click.argument("run_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--owner", is_flag=True, help="Standard input is the owner's control pipe.")
@click.option("--wait", is_flag=True, help="Output folder taken: wait for it.")
@click.option(
    "--gpu-script",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A card that is played from this file instead of the real one (`backprop drill`).",
)
def supervise_run(run_dir: Path, owner: bool, wait: bool, gpu_script: Path | None) -> int:
    """Supervise a run whose directory exists.

    Progress goes to stderr as plain lines. What keeps it from beginning is the last line on stdout, as JSON.
    """
    from backpropagate.drive.waiting import supervise_when_free
    from backpropagate.keep import runs
    from backpropagate.watch.console import PlainSink

    screen = current()
    screen.json = True
    run = RunDir(run_dir)
    sinks = [PlainSink(sys.stderr, verbose=runs.load_spec(run).verbose)]
    resumed = runs.has_begun(run)
    done = supervise_when_free(run, sinks, _tell, owner_pipe=owner, resumed=resumed, wait=wait, gpu_script=gpu_script)
    return done.exit_code


def _tell(text: str) -> None:
    click.echo(text, err=True)
