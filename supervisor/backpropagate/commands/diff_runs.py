"""`diff-runs`: two runs side by side, what was asked for and what came out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backpropagate.commands.flags import Command, from_table
from backpropagate.screen import current
from backpropagate.wishes.options import Value
from backpropagate.wishes.settings import Settings

if TYPE_CHECKING:
    from backpropagate.keep.comparison import Comparison, Outcome, Side

_WIDEST = 48
_CURVE = 40


@click.command(cls=Command)
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@from_table("training.output_dir")
def diff_runs(first: str, second: str, output_dir: Value) -> None:
    """Show in what two runs differ.

    A and B are run ids, any unique prefixes of them, or `latest`. First what was asked for (only settings that differ), then
    what came out, then the losses side by side.
    """
    import msgspec

    from backpropagate.keep.comparison import compare

    output = Settings({"output_dir": output_dir}).text("training.output_dir")
    one, other = _side(output, first), _side(output, second)
    found = compare(one, other)
    document = {
        "schema_version": "1",
        "first": one.row.run_id,
        "second": other.row.run_id,
        **msgspec.to_builtins(found),
    }
    current().data(document, "\n".join(_in_words(one, other, found)))


def _side(output: str, run: str) -> Side:
    from backpropagate.keep import campaign_report, history, runs
    from backpropagate.keep.comparison import Side

    run_dir = runs.find(output, run)
    spec = runs.load_spec(run_dir)
    report = campaign_report.read(run_dir) if spec.kind == "campaign" else None
    return Side(spec, history.show(run_dir), report)


def _in_words(one: Side, other: Side, found: Comparison) -> list[str]:
    heading = ("", one.row.run_id[:8], other.row.run_id[:8])
    asked = [(each.name, _value(each.first), _value(each.second)) for each in found.asked]
    outcome = [
        (each.name, _told(each, each.first), "=" if each.same else _told(each, each.second)) for each in found.came_out
    ]
    packages = [(each.name, _value(each.first), _value(each.second)) for each in found.packages]
    lines = ["asked for" if asked else "asked for: the same", *_table([heading, *asked] if asked else [])]
    lines += ["", "came out", *_table([heading, *outcome])]
    if found.same_samples is not None:
        told = "the same samples in the same order" if found.same_samples else "other samples, or in another order"
        lines.append(f"  they saw {told}")
    if packages:
        lines += ["", "packages", *_table([heading, *packages])]
    if found.losses:
        steps = [(f"step {step}", _value(first), _value(second)) for step, first, second in found.losses]
        lines += ["", "loss", *_table([heading, *steps]), *_curves(one, other)]
    return lines


def _curves(one: Side, other: Side) -> list[str]:
    """Each from its own lowest to its own highest, as long as its share of the longer run."""
    from backpropagate.watch.view import sparkline

    histories = [side.row.loss_history for side in (one, other)]
    longest = max(points[-1][0] for points in histories if points)
    lines = []
    for side, points in zip((one, other), histories, strict=True):
        width = max(1, round(_CURVE * points[-1][0] / longest)) if points else 0
        lines.append(f"  {side.row.run_id[:8]}  {sparkline([loss for _, loss in points], width=width)}")
    return lines


def _table(rows: list[tuple[str, str, str]]) -> list[str]:
    if not rows:
        return []
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return [f"  {name:{widths[0]}}  {first:{widths[1]}}  {second}".rstrip() for name, first, second in rows]


def _told(outcome: Outcome, value: object) -> str:
    """Of a digest, enough to tell it from others."""
    return _value(str(value)[:16] if outcome.name == "dataset_digest" else value)


def _value(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= _WIDEST else f"…{text[1 - _WIDEST :]}"
