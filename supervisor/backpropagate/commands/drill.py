"""`drill`: puts real runs of its own through every fault, here, before a night is trusted to this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backpropagate.commands.flags import Command, from_table
from backpropagate.screen import Screen, current
from backpropagate.wishes.options import Value

if TYPE_CHECKING:
    from pathlib import Path

    from backpropagate.drive.drill import Result


@click.command(cls=Command)
@click.option("--quick", is_flag=True, help="The most important rows only.")
@click.option("--real", is_flag=True, help="Also real training: out of memory, kill -9, a hang, a torn checkpoint.")
@click.option("--model", metavar="MODEL", help="The base of the real training, and so --real.  [default: tiny]")
@from_table("runner.python")
def drill(quick: bool, real: bool, model: str | None, **given: Value) -> int:
    """Put runs of its own through every fault on this machine.

    The runs are real, in a temporary folder: a small trainer without torch by default, which needs no card. The exit code is 0
    only if every row of the table holds. What went wrong is kept for a look.
    """
    import shutil
    import tempfile
    from pathlib import Path

    from backpropagate_protocol.errors import TrainingError

    screen = current()
    folder = Path(tempfile.mkdtemp(prefix="backprop-drill-"))
    keep = False
    try:
        results = _results(screen, folder, quick, model if model or not real else "tiny", given)
        keep = not all(result.holds for result in results)
    except TrainingError:
        keep = True  # the run to which nothing was done went wrong
        raise
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    screen.data(_document(results, folder if keep else None), "\n".join(_table(results, folder if keep else None)))
    return 2 if keep else 0


def _results(screen: Screen, folder: Path, quick: bool, model: str | None, given: dict[str, Value]) -> list[Result]:
    """`model`: of the real rows, if there shall be any."""
    from backpropagate.drive.drill import Drill, drilled
    from backpropagate.drive.drill_rows import real_rows, toy_rows
    from backpropagate.wishes.models import resolve_model
    from backpropagate.wishes.settings import Settings
    from backpropagate.wishes.surroundings import check_runner
    from backpropagate_protocol.spec import ModelSpec

    chosen = Settings(given).text_or_none("runner.python")
    python = check_runner(chosen, "toy" if model is None else "auto")
    base = None if model is None else ModelSpec(name=model, path=resolve_model(model).path)
    toy = Drill(folder / "toy", ModelSpec(name="toy", path="toy"), "toy", python)
    results = drilled(toy, toy_rows(quick=quick), screen.note)
    if base is not None:
        screen.note(f"and now real training of {base.name}:")
        real = Drill(folder / "real", base, "auto", python)
        results += drilled(real, real_rows(quick=quick), screen.note)
    return results


def _document(results: list[Result], kept: Path | None) -> dict[str, object]:
    from dataclasses import asdict

    rows = [{**asdict(result), "real": result.base is not None, "holds": result.holds} for result in results]
    return {"holds": kept is None, "rows": rows, "kept": None if kept is None else str(kept)}


def _table(results: list[Result], kept: Path | None) -> list[str]:
    real = any(result.base for result in results)
    head = (
        "fault",
        *(["training"] if real else []),
        "noticed after",
        "recovered after",
        "steps lost",
        "samples exact",
        "orphans",
        "",
    )
    rows = [
        (
            result.fault,
            *([f"real, of {result.base}" if result.base else "toy"] if real else []),
            _seconds(result.noticed),
            _seconds(result.recovered) if result.ended == "completed" else "ends, as it must" if result.holds else "-",
            str(result.steps_lost),
            "yes" if result.samples_exact else "NO",
            str(result.orphans),
            "holds" if result.holds else "DOES NOT HOLD",
        )
        for result in results
    ]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]
    lines += [f"{_named(result)}: {wrong}" for result in results for wrong in result.wrong]
    failed = sum(not result.holds for result in results)
    lines.append("")
    lines.append(
        f"All {len(results)} rows hold."
        if kept is None
        else f"{failed} of {len(results)} rows do not hold; their runs are kept in {kept}"
    )
    return lines


def _named(result: Result) -> str:
    return f"{result.fault}, real training" if result.base else result.fault


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"
