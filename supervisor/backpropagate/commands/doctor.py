"""`doctor`: tries out, each in a child with a deadline, what a training here would stand on; says what it will use and why."""

from __future__ import annotations

from collections.abc import Sequence

import click

from backpropagate.commands.flags import Command, from_table
from backpropagate.screen import current
from backpropagate.wishes.options import Value
from backpropagate_protocol.probes import BROKEN, NAMES, PROBES, WORKS, ProbeReport


@click.command(cls=Command)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@from_table("runner.python")
@click.option(
    "--deadline", type=click.FloatRange(min=1), default=180.0, show_default=True, help="Seconds for each of them."
)
def doctor(names: tuple[str, ...], deadline: float, **given: Value) -> int:
    """Try out what a training stands on: packages, card, kernels.

    Each is tried in a process of its own, so a broken one can crash or hang as it likes. What works is remembered, and used
    from then on by every training in the same environment. NAME: only these.
    """
    import msgspec

    from backpropagate.gpu_safety import get_gpu_status
    from backpropagate.keep import probed
    from backpropagate.wishes.settings import Settings
    from backpropagate.wishes.surroundings import check_runner
    from backpropagate_protocol.errors import UserInputError

    screen = current()
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise UserInputError(f"there is no probe {unknown[0]!r}", suggestion=f"Choose of {', '.join(NAMES)}.")
    python = check_runner(Settings(given).text_or_none("runner.python"), "toy")
    packages: dict[str, str] = {}
    reports = []
    for name in names or NAMES:
        screen.note(f"trying {name} …")
        reports.append(_tried(name, python, deadline, packages))
    if not names and packages:
        card = get_gpu_status()
        probed.remember(
            python,
            packages,
            "" if card is None else card.name,
            [report.name for report in reports if report.state == WORKS],
        )
    states = {report.name: report.state for report in reports}
    used = [] if names else _used(states)
    document = {"interpreter": python, "probes": [msgspec.structs.asdict(report) for report in reports], "uses": used}
    screen.data(document, "\n".join([*_table(reports), *([""] if used else []), *used]))
    return 1 if states.get("packages", WORKS) != WORKS or states.get("loss") == BROKEN else 0


def _tried(name: str, python: str | None, deadline: float, packages: dict[str, str]) -> ProbeReport:
    """packages: is given what is installed there."""
    from backpropagate.doors.oneshot import run_job
    from backpropagate_protocol.errors import BackpropagateError, InvalidSettingError
    from backpropagate_protocol.jobs import ProbeJob
    from backpropagate_protocol.messages import Hello, ToParent

    def heard(message: ToParent) -> None:
        if isinstance(message, Hello):
            packages.update(message.packages)

    try:
        return run_job(
            ProbeJob(name=name), ProbeReport, backend="none", runner_python=python, on_message=heard, deadline=deadline
        )
    except InvalidSettingError:
        raise  # the interpreter cannot even be started
    except BackpropagateError as error:
        return ProbeReport(name, BROKEN, error.message)


def _table(reports: Sequence[ProbeReport]) -> list[str]:
    return [f"{report.name:18} {report.state:8} {report.detail}" for report in reports]


def _used(states: dict[str, str]) -> list[str]:
    """What a training here will use, in words, from top to bottom of what it needs."""
    lines = ["A training here uses:"]
    for probe in PROBES:
        works = states[probe.name] == WORKS
        why = "" if works else f" ({states[probe.name]})"
        lines.append(f"  {probe.what}: {'yes' if works else f'no{why}: {probe.without}'}")
    return lines
