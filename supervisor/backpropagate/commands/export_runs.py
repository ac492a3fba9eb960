"""`export-runs`: every row of an output folder's history, for other programs: as lines of JSON, or as CSV."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click

from backpropagate.commands.flags import Command, from_table
from backpropagate.commands.runs import STATUSES
from backpropagate.keep.record import RunRow
from backpropagate.screen import current
from backpropagate.wishes.options import Value
from backpropagate.wishes.settings import Settings
from backpropagate_protocol.errors import ConfigurationError


@click.command(cls=Command)
@from_table("training.output_dir")
@click.option("--format", "kind", type=click.Choice(["jsonl", "csv"]), default="jsonl", show_default=True, help="A JSON object a line; or a table, with what is nested in it as JSON.")  # fmt: skip
@click.option("--to", metavar="PATH", help="File to write, replaced whole.  [default: standard output]")
@click.option("--status", type=click.Choice(STATUSES), help="Only runs of this status.")
def export_runs(output_dir: Value, kind: str, to: str | None, status: str | None) -> None:
    """Write out the history of an output folder, the oldest run first."""
    from backpropagate.keep import history
    from backpropagate.keep.rows import as_csv, as_lines
    from backpropagate_protocol import durable

    screen = current()
    target = None if to is None else _target(to)
    output = Settings({"output_dir": output_dir}).text("training.output_dir")
    rows = history.list_rows(output, status)[::-1]
    text = as_lines(rows) if kind == "jsonl" else as_csv(rows)
    if target is None:
        _told(rows, text)
        return
    try:
        durable.write_file(target, text.encode())
    except OSError as error:
        raise ConfigurationError(
            f"{target} cannot be written: {error.strerror or error}",
            code="CONFIG_OUTPUT_UNWRITABLE",
            suggestion="Choose another file with --to.",
        ) from error
    screen.data({"path": str(target), "rows": len(rows), "format": kind}, "")
    screen.note(f"{len(rows)} {'run' if len(rows) == 1 else 'runs'} written to {target}")


def _told(rows: Sequence[RunRow], text: str) -> None:
    current().data({"schema_version": "1", "runs": rows}, text.rstrip("\n"))


def _target(to: str) -> Path:
    """Raises ConfigurationError for a place that no file can be written to."""
    path = Path(os.path.abspath(os.path.expanduser(to)))
    wrong = (
        "is a folder"
        if path.is_dir()
        else f"is in {path.parent}, which is no folder"
        if not path.parent.is_dir()
        else ""
    )
    if not to.strip() or wrong:
        raise ConfigurationError(
            f"--to {to}: {path} {wrong}" if wrong else "--to names no file",
            code="CONFIG_OUTPUT_UNWRITABLE",
            suggestion="Give the path of a file in a folder that is there.",
        )
    return path
