"""`validate`: read a data set in a child, say what it is and what is wrong with it; train nothing."""

from __future__ import annotations

import click

from backpropagate.commands.flags import Command, from_table
from backpropagate.screen import current
from backpropagate.wishes.options import Value
from backpropagate_protocol.errors import DatasetValidationError


@click.command(cls=Command)
@click.argument("data")
@from_table("data.format", "data.split", "data.max_samples", "runner.python")
@click.option(
    "--max-errors", type=click.IntRange(min=1), default=10, show_default=True, help="How many bad rows are shown."
)
def validate(data: str, max_errors: int, **given: Value) -> int:
    """Check a data set without training.

    DATA is a file or a hub id, as for `backprop train --data`. Exit code 0: every row can be used; 1: some cannot.
    """
    import msgspec

    from backpropagate.doors.oneshot import run_job
    from backpropagate.wishes.build_spec import data_spec
    from backpropagate.wishes.settings import Settings
    from backpropagate.wishes.surroundings import check_runner
    from backpropagate_protocol.jobs import ValidateJob
    from backpropagate_protocol.messages import DataReport

    screen = current()
    settings = Settings(given)
    spec = data_spec(settings, data)
    runner_python = check_runner(settings.text_or_none("runner.python"), "toy")  # plain files need no framework
    report = run_job(
        ValidateJob(data=spec, max_errors=max_errors), DataReport, backend="none", runner_python=runner_python
    )
    document: dict[str, object] = {"data": spec.source, **msgspec.structs.asdict(report)}
    good = f"{report.rows} rows, format {report.format}"
    if report.bad == 0:
        counts = "".join(f"\n{name:20} {count}" for name, count in report.counts.items())
        screen.data(document, f"{spec.source}: {good}, nothing wrong{counts}")
        return 0
    more = f"\n… and {report.bad - len(report.errors)} more" if report.bad > len(report.errors) else ""
    if not screen.json:
        screen.data(None, "\n".join(report.errors) + more)
    wrong = DatasetValidationError(
        f"{report.bad} rows of {spec.source} cannot be used ({good})",
        suggestion="Repair these rows, or train without them: backprop train --on-bad-row skip.",
    )
    screen.error(wrong, document)
    return int(wrong.exit_code)
