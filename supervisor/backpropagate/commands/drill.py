"""`drill`: puts real runs of its own through every fault, here, before a night is trusted to this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backpropagate.commands.flags import Command, from_table
from backpropagate.screen import Screen, as_error, current
from backpropagate.wishes.options import Value

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backpropagate.drive.drill import Result
    from backpropagate.drive.drill_folder import DrillFolder


@click.command(cls=Command)
@click.option("--quick", is_flag=True, help="The most important rows only.")
@click.option("--real", is_flag=True, help="Also real training: out of memory, kill -9, a hang, a torn checkpoint.")
@click.option("--model", metavar="MODEL", help="The base of the real training, and so --real.  [default: tiny]")
@from_table("runner.python")
def drill(quick: bool, real: bool, model: str | None, **given: Value) -> int:
    """Put runs of its own through every fault on this machine.

    The runs are real, in a temporary folder: a small trainer without torch by default, which needs no card. The exit code is 0
    only if every row of the table holds. What went wrong is kept for a look.

    36 faults (39 where there are POSIX signals) take about a minute, the eight of --quick 20 seconds, on an idle machine.
    --real adds six, or with --quick two; each takes one or two loads of the model.
    """
    from backpropagate.drive.drill_folder import REAL_ROOM, TOY_ROOM, drill_folder
    from backpropagate_protocol.errors import BackpropagateError, TrainingError

    screen = current()
    base = model if model or not real else "tiny"
    results: list[Result] = []
    with drill_folder(TOY_ROOM if base is None else REAL_ROOM) as folder:
        try:
            for result in _results(screen, folder, quick, base, given):
                results.append(result)
        except (OSError, BackpropagateError) as error:
            cause = folder.full() or error
            folder.keep = cause is error and isinstance(error, TrainingError)  # the run to which nothing was done
            return _broken_off(screen, cause, results)
        folder.keep = not all(result.holds for result in results)
    kept = folder.path if folder.keep else None
    screen.data(_document(results, kept), "\n".join(_table(results, kept)))
    return 2 if kept else 0


def _broken_off(screen: Screen, error: Exception, results: list[Result]) -> int:
    """What was measured until then is told, and what ended it."""
    ours, code = as_error(error)
    if results and not screen.json:
        done = f"The drill was broken off after {len(results)} rows."
        screen.data({}, "\n".join([*_table(results, None)[:-1], done]))
    screen.error(ours, {**_document(results, None), "holds": False})
    return int(code)


def _results(
    screen: Screen, folder: DrillFolder, quick: bool, model: str | None, given: dict[str, Value]
) -> Iterator[Result]:
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
    toy = Drill(folder.path / "toy", ModelSpec(name="toy", path="toy"), "toy", python)
    yield from drilled(toy, toy_rows(quick=quick), screen.note, folder.full)
    if base is not None:
        screen.note(f"and now real training of {base.name}:")
        real = Drill(folder.path / "real", base, "auto", python)
        yield from drilled(real, real_rows(quick=quick), screen.note, folder.full)


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
            _recovered(result),
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


def _recovered(result: Result) -> str:
    if result.ended != "completed":
        return "ends, as it must" if result.holds else "-"
    return "no harm done" if result.recovered is None and result.holds else _seconds(result.recovered)


def _named(result: Result) -> str:
    return f"{result.fault}, real training" if result.base else result.fault


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"
