"""`validate`: read a data set in a child, say what it is and what is wrong with it, with a model what it would learn; train
nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backpropagate.commands.flags import Command, from_table
from backpropagate.screen import current
from backpropagate.wishes.options import Value
from backpropagate_protocol.errors import DatasetParseError, DatasetValidationError, InvalidSettingError

if TYPE_CHECKING:
    from backpropagate.wishes.settings import Settings

# What has an effect on tokens only.
_OF_TOKENS = (
    "model.max_seq_length", "data.train_on", "data.reasoning_trace", "data.min_trace_tokens", "data.max_trace_tokens",
    "data.min_tokens", "data.max_tokens", "model.revision", "model.trust_remote_code", "training.backend",
)  # fmt: skip


@click.command(cls=Command)
@click.argument("data")
@from_table("data.format", "data.split", "data.max_samples", "training.method", "data.dedup", "model.name", *_OF_TOKENS, "runner.python")  # fmt: skip
@click.option(
    "--max-errors", type=click.IntRange(min=1), default=10, show_default=True, help="How many bad rows are shown."
)
@click.option(
    "--show",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Show the first N rows as --model sees them, and which of their tokens carry loss.",
)
def validate(data: str, max_errors: int, show: int, **given: Value) -> int:
    """Check a data set without training.

    DATA is a file or a hub id, as for `backprop train --data`. With --model, its tokenizer says how long the rows are, how
    much of them is learnt and what is left out. Exit code 0: every row can be used; 1: some cannot.
    """
    from backpropagate.commands.data_report import document, words
    from backpropagate.doors.oneshot import run_job
    from backpropagate.wishes.build_spec import data_spec, model_spec
    from backpropagate.wishes.row_counts import every_row
    from backpropagate.wishes.rows import check_rows
    from backpropagate.wishes.settings import Settings
    from backpropagate.wishes.surroundings import check_backend, check_runner
    from backpropagate.wishes.together import check_together
    from backpropagate_protocol.about_data import DataReport
    from backpropagate_protocol.jobs import ValidateJob

    screen = current()
    settings = Settings({**given, "data": data})
    check_together(settings)
    with_model = settings["model.name"].given
    if not with_model:
        _check_tokens_are_made(settings, show)
    spec = every_row(data_spec(settings, data))
    check_rows(spec)
    backend = settings.text("training.backend") if with_model else "toy"  # rows alone need no framework
    check_backend(backend)
    runner_python = check_runner(settings.text_or_none("runner.python"), backend)
    model = model_spec(settings) if with_model else None
    job = ValidateJob(data=spec, max_errors=max_errors, model=model, backend=backend, samples=show)
    report = run_job(job, DataReport, backend=backend if with_model else "none", runner_python=runner_python)
    answer: dict[str, object] = {"data": spec.source, **document(report)}
    good = f"{report.rows} rows, format {report.format}"
    if report.bad == 0:
        screen.data(answer, f"{spec.source}: {good}, nothing wrong\n{words(report)}".rstrip())
        return 0
    more = f"\n… and {report.bad - len(report.errors)} more" if report.bad > len(report.errors) else ""
    if not screen.json:
        screen.data(None, "\n".join(report.errors) + more)
        screen.data(None, words(report))
    kind = DatasetParseError if report.unparsed else DatasetValidationError  # as the training that meets them
    wrong = kind(
        f"{report.bad} of {report.bad + report.rows} rows of {spec.source} cannot be used (format {report.format})",
        suggestion="Repair these rows, or train without them: backprop train --on-bad-row skip.",
    )
    screen.error(wrong, answer)
    return int(wrong.exit_code)


def _check_tokens_are_made(settings: Settings, show: int) -> None:
    """Raises InvalidSettingError for a flag that would do nothing without --model."""
    flags = {settings[key].option.flags[0].partition("/")[0]: settings[key].given for key in _OF_TOKENS}
    for flag, wanted in {**flags, "--show": show > 0}.items():
        if wanted:
            raise InvalidSettingError(
                f"{flag} would have no effect: only a model's tokenizer makes tokens",
                suggestion="Add --model, for instance --model tiny, or leave it out.",
            )
