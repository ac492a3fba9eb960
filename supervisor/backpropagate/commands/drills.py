"""The hidden flag that plans faults: `--fault KIND@STEP[:ATTEMPT][@STAGE]`."""

from __future__ import annotations

import re
from collections.abc import Callable

import click

from backpropagate.wishes.suggest import did_you_mean
from backpropagate_protocol.errors import UserInputError
from backpropagate_protocol.spec import PlannedFault

_STAGES = (
    "train", "preflight", "reference", "merge", "convert", "quantize", "prove", "register", "place", "push", "plot",
)  # fmt: skip
# Of a campaign: the training of its second run, the merge after it, that by another rule, …
_OF_CAMPAIGNS = re.compile(r"train-\d+|(combine|evaluate|choose)-\d{3}(-[a-z-]+)?")
_FAULT = re.compile(r"(?P<kind>[^@:]+)@(?P<step>\d+)(:(?P<attempt>\d+))?(@(?P<stage>[^@:]+))?")


def _planned(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[PlannedFault, ...]:
    return tuple(map(planned_fault, values))


def planned_fault(text: str) -> PlannedFault:
    """Raises UserInputError for what does not read so, and for a stage that there is not."""
    match = _FAULT.fullmatch(text)
    if match is None:
        raise UserInputError(
            f"--fault {text}: it reads KIND@STEP[:ATTEMPT][@STAGE], such as oom@5 or sigkill@3@convert"
        )
    stage = match["stage"] or "train"
    if stage not in _STAGES and not _OF_CAMPAIGNS.fullmatch(stage):
        raise UserInputError(f"--fault {text}: there is no stage {stage!r}{did_you_mean(stage, _STAGES)}")
    return PlannedFault(match["kind"], int(match["step"]), int(match["attempt"] or "1"), stage)


def fault_flag(function: Callable[..., object]) -> Callable[..., object]:
    """Adds the flag; its values are the argument `faults`."""
    return click.option("--fault", "faults", multiple=True, hidden=True, callback=_planned)(function)
