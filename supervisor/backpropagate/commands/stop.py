"""`stop`: ends a run that another process supervises, so that it can be gone on with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backpropagate.commands.flags import Command, from_table
from backpropagate.screen import current
from backpropagate.wishes.options import Value
from backpropagate.wishes.settings import Settings
from backpropagate_protocol.errors import code_of_write, error_for

if TYPE_CHECKING:
    from backpropagate.keep.record import RunRow


@click.command(cls=Command)
@click.argument("run")
@from_table("training.output_dir")
@click.option("--now", is_flag=True, help="End it at once: what is not in a checkpoint yet is trained again.")
@click.option("--no-wait", is_flag=True, help="Only ask; do not wait until it has ended.")
def stop(run: str, output_dir: Value, now: bool, no_wait: bool) -> None:
    """Stop a running run: it saves, ends, and can be gone on with.

    For one that was started with --detach, by a scheduler or in another terminal; there, the run ends with exit code 75.
    RUN is a run id, any unique prefix of one, or `latest`, the newest that is running. An export, an upload and a
    campaign are stopped likewise. To ask twice does no harm.
    """
    from backpropagate.api.stopping import stopped
    from backpropagate.keep import history, runs

    screen = current()
    run_dir = history.to_stop(Settings({"output_dir": output_dir}).text("training.output_dir"), run)
    try:
        row = stopped(run_dir, screen.note, now=now, wait=not no_wait)
    except OSError as error:
        text = f"{run_dir.path} cannot be written: {error.strerror or error}"
        raise error_for(code_of_write(error), text, run_id=run_dir.run_id) from error
    document: dict[str, object] = {"run_id": run_dir.run_id, "run_dir": str(run_dir.path)}
    resume = runs.resuming(run_dir)
    if row is None:
        screen.data({**document, "status": "running", "resume": resume}, f"run {run_dir.run_id[:8]} is asked to end")
        return
    document |= {"status": row.status, "steps": row.steps, "total_steps": row.total_steps}
    lines = [f"run {row.run_id[:8]}: {row.status}{_where(row)}"]
    if row.status not in ("completed", "running"):  # running: it went on under another supervisor at once
        document["resume"] = resume
        lines.append(f"go on with: {resume}")
    screen.data(document, "\n".join(lines))


def _where(row: RunRow) -> str:
    return f" at step {row.steps}/{row.total_steps or '?'}" if row.session_kind == "single_run" else ""
