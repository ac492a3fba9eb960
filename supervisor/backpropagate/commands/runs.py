"""`list-runs` and `show-run`: what the history of an output folder says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backpropagate.commands.flags import Command, from_table
from backpropagate.screen import current
from backpropagate.wishes.options import Value
from backpropagate.wishes.settings import Settings

if TYPE_CHECKING:
    from backpropagate.keep.record import RunRow

STATUSES = ("running", "completed", "failed", "interrupted", "partial")


@click.command(cls=Command)
@from_table("training.output_dir")
@click.option("--status", type=click.Choice(STATUSES), help="Only runs of this status.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many, the newest first."
)
@click.option("--all", "every", is_flag=True, help="No limit.")
@click.option("--rebuild", is_flag=True, help="First make the history again from the run directories.")
def list_runs(output_dir: Value, status: str | None, limit: int, every: bool, rebuild: bool) -> None:
    """List the runs of an output folder."""
    from backpropagate.keep import history

    screen = current()
    output = Settings({"output_dir": output_dir}).text("training.output_dir")
    if rebuild:
        count = history.rebuild(output)
        screen.note(f"made the history again from {count} {'run' if count == 1 else 'runs'}")
    rows = history.list_rows(output, status, None if every else limit)
    if not rows:
        screen.note(f"no runs in {output}" if status is None else f"no {status} runs in {output}")
    screen.data({"schema_version": "1", "runs": rows}, "\n".join([_HEADER, *map(_line, rows)]) if rows else "")


_HEADER = f"{'run':8}  {'status':11}  {'steps':>13}  {'loss':>8}  {'started':20}  model, data"


def _line(row: RunRow) -> str:
    loss = "" if row.final_loss is None else f"{row.final_loss:.4f}"
    data = row.dataset_info.replace("\\", "/").rpartition("/")[2]
    label = f" ({row.name})" if row.name else ""
    steps = row.session_kind if row.session_kind in ("export", "push") else f"{row.steps}/{row.total_steps or '?'}"
    return f"{row.run_id[:8]}  {row.status:11}  {steps:>13}  {loss:>8}  {row.started_at:20}  {row.model_name}, {data}{label}"


@click.command(cls=Command)
@click.argument("run")
@from_table("training.output_dir")
def show_run(run: str, output_dir: Value) -> None:
    """Show everything about one run.

    RUN is a run id, any unique prefix of one, or `latest`.
    """
    import msgspec

    from backpropagate.keep import history, runs
    from backpropagate.watch.view import sparkline

    output = Settings({"output_dir": output_dir}).text("training.output_dir")
    run_dir = runs.find(output, run)
    row = history.show(run_dir)
    document: dict[str, object] = {**msgspec.to_builtins(row), "run_dir": str(run_dir.path)}
    shown = {name: value for name, value in document.items() if value not in (None, "", [], {}, ())}
    if row.micro_batch_history:
        shown["micro_batch_history"] = _batches(row)
    shown["loss_history"] = sparkline([loss for _, loss in row.loss_history], width=60)
    lines = [line for name, value in shown.items() for line in _field(name, value)]
    current().data(document, "\n".join(lines))


def _batches(row: RunRow) -> list[str]:
    """`batch 4 × 2 from step 0`: rows on the device at once, and how many of these make an optimizer step."""
    wanted = row.hyperparameters.get("effective_batch")
    return [
        f"batch {size}{f' × {wanted // size}' if isinstance(wanted, int) else ''} from step {step}"
        for step, size in row.micro_batch_history
    ]


def _field(name: str, value: object) -> list[str]:
    if isinstance(value, dict):
        return [f"{name}:", *(f"  {key:30} {_item(item)}" for key, item in value.items() if item is not None)]
    if isinstance(value, list):
        return [f"{name}:", *(f"  {_item(item)}" for item in value)]
    return [f"{name:20} {value}"]


def _item(item: object) -> str:
    if isinstance(item, dict):
        return ", ".join(f"{key} {value}" for key, value in item.items())
    return " ".join(str(part) for part in item) if isinstance(item, list | tuple) else str(item)
