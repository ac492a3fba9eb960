"""`list-runs` and `show-run`: what the history of an output folder says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backpropagate.commands.flags import Command, from_table
from backpropagate.screen import current
from backpropagate.wishes.models import last_part
from backpropagate.wishes.options import Value
from backpropagate.wishes.settings import Settings
from backpropagate_protocol.errors import InvalidSettingError

if TYPE_CHECKING:
    from backpropagate.keep.record import RunRow

_LIMIT = 20
STATUSES = ("running", "completed", "failed", "interrupted", "partial")


@click.command(cls=Command)
@from_table("training.output_dir")
@click.option("--status", type=click.Choice(STATUSES), help="Only runs of this status.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many, the newest first.  [default: 20]")
@click.option("--all", "every", is_flag=True, help="No limit.")
@click.option("--flat", is_flag=True, help="One list, without the runs of a campaign below it.")
@click.option("--rebuild", is_flag=True, help="First make the history again from the run directories.")
def list_runs(output_dir: Value, status: str | None, limit: int | None, every: bool, flat: bool, rebuild: bool) -> None:
    """List the runs of an output folder.

    A campaign comes with its runs below it, which --limit does not count.
    """
    from backpropagate.keep import history
    from backpropagate.keep.tree import tree

    screen = current()
    output = Settings({"output_dir": output_dir}).text("training.output_dir")
    if rebuild:
        count = history.rebuild(output)
        screen.note(f"made the history again from {count} {'run' if count == 1 else 'runs'}")
    if every and limit is not None:
        raise InvalidSettingError(
            "--limit would have no effect: --all has none", suggestion="Leave one of the two out."
        )
    most = None if every else limit or _LIMIT
    listed = flat or status is not None  # a run that failed may be one of a campaign that did not
    rows = [(row, "") for row in history.list_rows(output, status, most)] if listed else tree(output, most)
    if not rows:
        screen.note(f"no runs in {output}" if status is None else f"no {status} runs in {output}")
    wide = max((len(branch) for _, branch in rows), default=0)
    lines = [_header(wide), *(_line(row, branch, wide) for row, branch in rows)] if rows else []
    screen.data({"schema_version": "1", "runs": [row for row, _ in rows]}, "\n".join(lines))


_OF_A_TRAINING = ("steps", "total_steps", "samples_seen", "order", "loss_history")


def _header(wide: int) -> str:
    return f"{'run':{8 + wide}}  {'status':11}  {'steps':>13}  {'loss':>8}  {'started':20}  model, data"


def _line(row: RunRow, branch: str, wide: int) -> str:
    loss = "" if row.final_loss is None else f"{row.final_loss:.4f}"
    label = f" ({row.name})" if row.name else ""
    trained = row.session_kind not in ("export", "push")
    steps = f"{row.steps}/{row.total_steps or '?'}" if trained else row.session_kind
    run = f"{branch}{row.run_id[:8]}"
    return f"{run:{8 + wide}}  {row.status:11}  {steps:>13}  {loss:>8}  {row.started_at:20}  {_what(row)}{label}"


def _what(row: RunRow) -> str:
    """What was trained on what; of an export, what was or will be made; of an upload, what went where."""
    model, wished, data = last_part(row.model_name), row.hyperparameters, last_part(row.dataset_info)
    if row.session_kind == "export":
        made = last_part(row.export_paths[-1]) if row.export_paths else wished.get("quantization") or wished["format"]
        return f"{model} -> {made}"
    if row.session_kind == "push":
        return f"{model} -> {wished['repo']}"
    if row.session_kind == "multi_run":
        runs_ = "1 run" if len(row.runs) == 1 else f"{len(row.runs)} runs"
        return f"{model}, {runs_} on {data}{' …' if len(row.runs) > 1 else ''}"
    return f"{model}, {data}"


@click.command(cls=Command)
@click.argument("run")
@from_table("training.output_dir")
def show_run(run: str, output_dir: Value) -> None:
    """Show everything about one run.

    RUN is a run id, any unique prefix of one, or `latest`. Of a campaign: its runs, and what was forgotten, too.
    Of every fault: what died of what, what was done about it, and what is left to do.
    """
    import shutil

    import msgspec

    from backpropagate.keep import campaign_report, faults, history, runs
    from backpropagate.watch import faults as faults_in_words
    from backpropagate.watch import forgetting_table
    from backpropagate.watch.view import sparkline

    output = Settings({"output_dir": output_dir}).text("training.output_dir")
    run_dir = runs.find(output, run)
    row = history.show(run_dir)
    document: dict[str, object] = {**msgspec.to_builtins(row), "run_dir": str(run_dir.path)}
    report = None
    if row.session_kind == "multi_run":
        report = campaign_report.read(run_dir)
        document["report"] = msgspec.to_builtins(report)
    shown = {name: value for name, value in document.items() if value not in (None, "", [], {}, ())}
    if row.session_kind in ("export", "push"):
        shown = {name: value for name, value in shown.items() if name not in _OF_A_TRAINING}
    if row.best_loss is None:
        shown.pop("best_step", None)
    if row.micro_batch_history:
        shown["micro_batch_history"] = _batches(row)
    trained = row.session_kind not in ("export", "push")
    if trained:
        shown["loss_history"] = sparkline([loss for _, loss in row.loss_history], width=60)
    if row.eval_history:
        shown["eval_history"] = [f"step {step}: {loss:.4f}" for step, loss in row.eval_history]
    for name in ("report", *(["link"] if not row.link else [])):  # the report is told as a table
        shown.pop(name, None)
    if row.runs:
        shown["runs"] = [_run_of_campaign(run) for run in row.runs]
    if "order" in shown:
        shown["order"] = f"{row.order} (a checksum over the ids of all samples seen, in their order)"
    records = faults.read_all(run_dir)
    if len(records) >= len(row.faults):
        shown.pop("faults", None)  # each is told below
    lines = [line for name, value in shown.items() for line in _field(name, value)]
    if records:
        document["faults"] = msgspec.to_builtins(records)
        lines += ["", *faults_in_words.lines(records, str(run_dir.faults))]
    if report is not None:
        table = forgetting_table.lines(report, width=shutil.get_terminal_size().columns)
        lines += ["", *table] if table else []
    current().data(document, "\n".join(lines))


def _batches(row: RunRow) -> list[str]:
    """`batch 4 × 2 from step 0`: rows on the device at once, and how many of these make an optimizer step."""
    wanted = row.hyperparameters.get("effective_batch")
    return [
        f"batch {size}{f' × {wanted // size}' if isinstance(wanted, int) else ''} from step {step}"
        for step, size in row.micro_batch_history
    ]


def _run_of_campaign(run: dict[str, object]) -> str:
    """`2 5c2d8beb week-2: 100 steps, loss 1.234, merged by slao with 0.71`."""
    said = f"{run.get('link')} {str(run.get('run_id', ''))[:8]} {run.get('name', '')}: {run.get('steps', 0)} steps"
    loss, coefficient = run.get("loss"), run.get("coefficient")
    said += f", loss {loss:.4f}" if isinstance(loss, float) else ""
    said += f", recovered from {run['recoveries']}" if run.get("recoveries") else ""
    return said + (f", merged by {run.get('rule')} with {coefficient:.2f}" if isinstance(coefficient, float) else "")


def _field(name: str, value: object) -> list[str]:
    if isinstance(value, dict):
        return [f"{name}:", *(f"  {key:30} {_item(item)}" for key, item in value.items() if item is not None)]
    if isinstance(value, list):
        return [f"{name}:", *(f"  {_item(item)}" for item in value)]
    return [f"{name:20} {_item(value)}"]


def _item(item: object) -> str:
    if isinstance(item, float):
        return f"{item:.6g}"
    if isinstance(item, dict):
        return ", ".join(f"{key} {value}" for key, value in item.items())
    return " ".join(str(part) for part in item) if isinstance(item, list | tuple) else str(item)
