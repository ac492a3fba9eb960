"""`multi-run`: a campaign of trainings that are merged into one adapter; begun, gone on with, or given one more run."""

from __future__ import annotations

import click

from backpropagate.commands.drills import fault_flag
from backpropagate.commands.flags import Command, from_table
from backpropagate.commands.train import TRAINING_KEYS, later_flags
from backpropagate.screen import Screen, current
from backpropagate.wishes.of_one_training import OF_ONE_TRAINING
from backpropagate.wishes.options import BY_ARGUMENT, Value
from backpropagate.wishes.settings import Settings
from backpropagate_protocol.errors import UserInputError
from backpropagate_protocol.spec import PlannedFault, RunSpec

_CAMPAIGN_KEYS = (
    "campaign.runs", "training.max_steps", "campaign.samples", "campaign.merge", "campaign.floor", "campaign.weight",
    "campaign.density", "campaign.replay", "campaign.holdout", "campaign.evaluate", "campaign.eval_rows",
    "campaign.early_stop",
)  # fmt: skip
_OTHERWISE_HERE = ("data.source", "data.max_samples", *_CAMPAIGN_KEYS)
# Read and refused, each with what a campaign has instead: as an unknown flag, `--early-stopping` would be taken for
# `--early-stop`, which counts something else.
_REFUSED = tuple(OF_ONE_TRAINING)
_KEPT = "a campaign keeps the settings it began with"


@click.command(cls=Command)
@click.argument("campaign", metavar="[CAMPAIGN]", required=False)
@click.option("-d", "--data", "data", multiple=True, metavar="DATA", help="Training data: one file (or hub id), cut into runs; or several, one for each run, in order.")  # fmt: skip
@from_table(*_CAMPAIGN_KEYS, shorter={"campaign.samples": "--samples"})
@click.option("--resume", "resume_run", metavar="ID", help="Go on with this campaign, as `backprop resume`.")
@click.option("--fresh", is_flag=True, help="Begin anew, although an unfinished campaign is in the output folder.")
@click.option("--append", "new", metavar="DATA", help="Give a finished campaign one more run, on this data. Default: the newest CAMPAIGN.")  # fmt: skip
@from_table(*(key for key in TRAINING_KEYS if key not in _OTHERWISE_HERE), hidden=_REFUSED)
@click.option("--detach", is_flag=True, help="Start it and return; it goes on without this terminal.")
@fault_flag
@later_flags
def multi_run(
    campaign: str | None,
    data: tuple[str, ...],
    resume_run: str | None,
    fresh: bool,
    new: str | None,
    detach: bool,
    faults: tuple[PlannedFault, ...],
    **given: Value,
) -> int:
    """Train a campaign: several runs, merged after each.

    A single file is cut into --runs of --samples rows; several files are one run each. An unfinished campaign in the same
    output folder that was begun with the same wishes is gone on with. The result is the merged adapter.
    """
    screen = current()
    settings = Settings(given)
    screen.verbose = screen.verbose or settings.flag("debug")
    named = [name for name, value in given.items() if value is not None]
    flags = [f"--{word}" for word, said in (("data", data), ("fresh", fresh), ("append", new)) if said]
    if resume_run is not None:
        _alone("--resume", flags, named, but=("output_dir", "wait"))
        if campaign is not None:
            raise UserInputError("a campaign was named twice", suggestion="Say `--resume ID`, without the other.")
        return _resumed(screen, settings, resume_run, detach)
    if new is not None:
        _alone("--append", [flag for flag in flags if flag != "--append"], named, but=("output_dir", "wait", "replay_ratio"))  # fmt: skip
        return _appended(screen, settings, campaign, new, detach)
    if campaign is not None:
        raise UserInputError(
            f"it is not said what to do with {campaign}",
            suggestion=f"Data is named with --data {campaign}; a campaign with --resume {campaign}, or --append DATA {campaign}.",
        )
    return _begun(screen, settings, data, named, fresh=fresh, detach=detach, faults=faults)


def _alone(flag: str, flags: list[str], named: list[str], *, but: tuple[str, ...]) -> None:
    """What could not take effect must not be passed over."""
    extra = flags + [BY_ARGUMENT[name].flag for name in named if name not in but]
    if extra:
        raise UserInputError(f"{_KEPT}; with {flag}, {', '.join(extra)} cannot change them", suggestion="Leave the flags out, or begin a new one.")  # fmt: skip


def _begun(
    screen: Screen,
    settings: Settings,
    data: tuple[str, ...],
    said: list[str],
    *,
    fresh: bool,
    detach: bool,
    faults: tuple[PlannedFault, ...],
) -> int:
    from backpropagate.commands.supervising import begin, go_on
    from backpropagate.wishes import campaign_again
    from backpropagate.wishes.campaign_spec import campaign_run, room_for
    from backpropagate.wishes.notices import notices
    from backpropagate.wishes.row_counts import counted_by_child
    from backpropagate.wishes.together import check_of_export

    check_of_export(settings, said)
    wanted = campaign_run(settings, data, counted_by_child, detached=detach, verbose=screen.verbose, faults=faults)
    for notice in (*notices(settings), *wanted.notices):
        screen.note(f"note: {notice}")
    earlier = None if fresh else campaign_again.to_go_on_with(wanted.spec)
    if earlier is not None:
        screen.note(f"note: campaign {earlier.run_id[:8]} was not finished and is gone on with (--fresh begins anew)")
        return go_on(screen, earlier, detach, settings.flag("safety.wait"))
    room_for(wanted.spec)
    _shown(screen, wanted.spec)
    return begin(screen, wanted.spec, detach)


def _shown(screen: Screen, spec: RunSpec) -> None:
    """What is about to be trained on, a line for each run: the moment to see that it was not meant."""
    assert spec.campaign is not None
    for number, (name, data) in enumerate(zip(spec.campaign.names, spec.campaign.runs, strict=True), 1):
        again = sum(portion.take for portion in data.replay)
        screen.note(f"run {number}: {name}" + (f", and {again} earlier rows" if again else ""))


def _resumed(screen: Screen, settings: Settings, run: str, detach: bool) -> int:
    from backpropagate.commands.supervising import go_on
    from backpropagate.wishes.campaign_again import campaign, named_campaign

    run_dir = named_campaign(settings.text("training.output_dir"), run)
    campaign(run_dir)
    return go_on(screen, run_dir, detach, settings.flag("safety.wait"))


def _appended(screen: Screen, settings: Settings, named: str | None, new: str, detach: bool) -> int:
    from backpropagate.commands.supervising import extended
    from backpropagate.drive.extending import extend
    from backpropagate.wishes import campaign_again
    from backpropagate.wishes.row_counts import counted_by_child
    from backpropagate.wishes.surroundings import check_runner

    run_dir = campaign_again.named_campaign(settings.text("training.output_dir"), named)
    spec, _ = campaign_again.campaign(run_dir)
    python = check_runner(spec.runner_python, spec.backend)
    counter, wait = counted_by_child(python), settings.flag("safety.wait")
    one_more = extend(
        run_dir, lambda: campaign_again.appended(run_dir, settings, new, counter), wait=wait, tell=screen.note
    )
    for notice in one_more.said:
        screen.note(f"note: {notice}")
    again = sum(portion.take for portion in one_more.data.replay)
    screen.note(f"one more run: {one_more.name}" + (f", and {again} earlier rows" if again else ""))
    return extended(screen, run_dir, detach, wait)
