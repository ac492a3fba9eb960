"""A campaign's wishes → RunSpec, after every check that needs no framework: each wrong wish is an error within a moment.

Nothing is written here. What the data say is asked once, through a counter: how many rows each file has. All the rest
follows from that, so the same wishes over the same files give the same campaign.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from backpropagate.doors.environ import environment
from backpropagate.judge.campaign import AUTO
from backpropagate.wishes import campaign_room
from backpropagate.wishes.build_spec import build_spec, data_spec
from backpropagate.wishes.campaign_data import (
    Window,
    chosen_holdout,
    cut,
    enough,
    one_each,
    replayed,
    stem,
    task_names,
    with_window,
)
from backpropagate.wishes.of_one_training import check_of_campaign
from backpropagate.wishes.options import BY_KEY
from backpropagate.wishes.row_counts import Counter
from backpropagate.wishes.settings import Settings
from backpropagate_protocol.errors import InvalidSettingError, UserInputError
from backpropagate_protocol.spec import CampaignSpec, DataSpec, PlannedFault, RunSpec

DEFAULT_REPLAY = 0.1  # what most evidence speaks for, where earlier data is at hand
# What is said for one rule must not be passed over by another.
_FOR_RULES = {
    "campaign.floor": ("slao", "slao-product", "ema", "average", "auto"),
    "campaign.weight": ("ema", "auto"),
    "campaign.density": ("ties", "dare", "auto"),
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """A campaign that can begin, and what the user should read once before it does."""

    spec: RunSpec
    notices: tuple[str, ...]


def campaign_run(
    settings: Settings,
    data: Sequence[str],
    counter: Callable[[str | None], Counter],
    *,
    detached: bool = False,
    verbose: bool = False,
    faults: Sequence[PlannedFault] = (),
) -> Wanted:
    """Raises a coded error for the first wish that cannot be served.

    data: files or hub ids, one run each; a single one is cut into runs. Empty: that of the settings. counter: makes what
    counts rows, given the interpreter that shall run the child.
    """
    sources = list(data) or [name for name in [settings.text_or_none("data.source")] if name is not None]
    if not sources:
        raise UserInputError(
            "no training data was named",
            suggestion="Name it with --data, for instance: backprop multi-run --data my_data.jsonl --model tiny",
        )
    possible(settings)
    if len(sources) > 1 and settings["campaign.runs"].given:
        one_each(len(sources), settings.whole("campaign.runs"))
    every = [data_spec(settings, source) for source in sources]
    single = build_spec(settings.with_argument("data", sources[0]), detached=detached, verbose=verbose, faults=faults)
    chosen, said = campaign_spec(settings, every, [_counted(settings, each, counter(single.runner_python)) for each in limited(settings, every)])  # fmt: skip
    spec = msgspec.structs.replace(single, kind="campaign", data=chosen.runs[0], campaign=chosen)
    return Wanted(spec, tuple(said))


def room_for(spec: RunSpec) -> None:
    """Raises DiskFullError if the disk has no room for all of it. Not asked of a campaign that is gone on with."""
    assert spec.campaign is not None
    campaign_room.check(spec, environment(), runs=len(spec.campaign.runs), done=0)


def possible(settings: Settings) -> None:
    """Refuses what no campaign can be, whatever its data."""
    if settings.text("training.mode") == "full":
        raise InvalidSettingError(
            "a campaign merges adapters, and a full fine-tune has none", suggestion="Use --mode lora."
        )
    if settings.text("training.method") != "sft":
        raise InvalidSettingError(
            f"the runs of a campaign are scored and mixed as plain answers, so the method {settings.text('training.method')} cannot train them",
            suggestion="Use --method sft here, and `backprop train --method …` for preferences.",
        )
    check_of_campaign(settings)
    rule = settings.text("campaign.merge")
    mergeable(settings.flag("lora.use_dora"), rule)
    numbers_that_count(settings, rule)
    if not (settings.flag("campaign.evaluate") and settings.whole("campaign.holdout") > 0):
        _decided_without(settings, "and nothing is to be evaluated", "Leave --no-evaluate or --holdout 0 out.")
        if settings["campaign.eval_rows"].given:
            raise InvalidSettingError(
                f"{BY_KEY['campaign.eval_rows'].flag} would have no effect: nothing is to be evaluated",
                suggestion="Leave it out, or leave --no-evaluate or --holdout 0 out.",
            )


def mergeable(dora: bool, rule: str) -> None:
    """Raises InvalidSettingError for adapters that no rule can merge."""
    if dora and rule != "none":
        raise InvalidSettingError(
            f"DoRA adapters cannot be merged by {rule}: their magnitudes are fitted to the directions of one adapter, and "
            "belong to no other",
            suggestion="Leave --use-dora out, or keep the runs unmerged: --merge none.",
        )


def numbers_that_count(settings: Settings, rule: str) -> None:
    """Raises InvalidSettingError for a number that was said and that this rule does not know."""
    for key, rules in _FOR_RULES.items():
        if settings[key].given and rule not in rules:
            raise InvalidSettingError(
                f"{BY_KEY[key].flag} means nothing to --merge {rule}",
                suggestion=f"Leave it out, or choose --merge {' or '.join(rules)}.",
            )


def _decided_without(settings: Settings, why: str, advice: str) -> None:
    """Raises for a wish that only an evaluation could serve."""
    for wish, asked in (
        ("--merge auto", settings.text("campaign.merge") == AUTO),
        ("--early-stop", settings.whole("campaign.early_stop") > 0),
    ):
        if asked:
            raise InvalidSettingError(f"{wish} decides by held-out rows, {why}", suggestion=advice)


def limited(settings: Settings, data: Sequence[DataSpec]) -> list[DataSpec]:
    """The same data sets, with as many rows as there is any use for."""
    if len(data) == 1:
        most = settings.whole("campaign.runs") * settings.whole("campaign.samples")
        whole = data[0].samples
        return [msgspec.structs.replace(data[0], samples=most if whole is None else min(most, whole))]
    if settings["campaign.samples"].given:
        return [msgspec.structs.replace(each, samples=settings.whole("campaign.samples")) for each in data]
    return list(data)


def _counted(settings: Settings, data: DataSpec, count: Counter) -> int:
    rows = count(data)
    return rows if data.samples is None else min(rows, data.samples)


def campaign_spec(settings: Settings, data: Sequence[DataSpec], rows: Sequence[int]) -> tuple[CampaignSpec, list[str]]:
    """The runs, and what there is to be said about them. rows: of each data set, as far as they are to be used. Pure."""
    said: list[str] = []
    one = len(data) == 1
    if one:
        runs, samples = settings.whole("campaign.runs"), settings.whole("campaign.samples")
        enough(rows[0], runs, data[0].source)
        windows = cut(rows[0], runs, samples)
        every = [data[0]] * runs
        if rows[0] < runs * samples:
            said.append(_too_short(data[0], rows[0], windows))
    else:
        for each, count in zip(data, rows, strict=True):
            enough(count, 1, each.source)
        windows, every = [Window(0, count) for count in rows], list(data)
    wished = settings["campaign.holdout"]
    holdout = chosen_holdout(settings.whole("campaign.holdout"), windows, explicit=wished.explicit)
    if holdout != wished.value:
        said.append(_other_holdout(holdout, min(window.size for window in windows)))
    evaluate = settings.flag("campaign.evaluate") and holdout > 0
    if not evaluate:
        _decided_without(settings, "and the runs have too few rows to hold any out", "Give fewer --runs or more data, or leave it out.")  # fmt: skip
    bounded = one or settings["campaign.samples"].given
    specs = [
        with_window(each, window, holdout, whole=not bounded and each.samples is None)
        for each, window in zip(every, windows, strict=True)
    ]
    ratio = replay_ratio(settings)
    seed = settings.whole("training.seed")
    for run in range(1, len(specs)):
        again = replayed(specs[:run], windows[:run], windows[run].trained(holdout), ratio, seed + run)
        specs[run] = msgspec.structs.replace(specs[run], replay=again)
    counted = [msgspec.structs.replace(each, samples=window.size) for each, window in zip(specs, windows, strict=True)]
    chosen = CampaignSpec(
        runs=tuple(counted),  # a file that grows later does not grow into these
        names=task_names(specs, windows),
        merge=settings.text("campaign.merge"),
        floor=settings.number("campaign.floor"),
        weight=settings.number("campaign.weight"),
        density=settings.number("campaign.density"),
        evaluate=evaluate,
        eval_rows=settings.whole("campaign.eval_rows"),
        early_stop=settings.whole("campaign.early_stop"),
        replay=ratio,
    )
    return chosen, said


def replay_ratio(settings: Settings) -> float:
    """Share of a run's rows that are earlier ones, once there are any."""
    return DEFAULT_REPLAY if settings["campaign.replay"].value is None else settings.number("campaign.replay")


def _too_short(data: DataSpec, rows: int, windows: Sequence[Window]) -> str:
    sizes = sorted({window.size for window in windows})
    each = " or ".join(map(str, sizes))
    return f"{stem(data.source)} has {rows} rows: each of the {len(windows)} runs trains on {each}"


def _other_holdout(holdout: int, smallest: int) -> str:
    if holdout:
        return f"every {holdout}th row is held out for the evaluation, since a run has only {smallest} rows"
    return f"nothing is held out or evaluated, since a run has only {smallest} {'row' if smallest == 1 else 'rows'}"
