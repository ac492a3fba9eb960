"""An earlier campaign in the same output folder: found, compared with what is wished now, gone on with, or added to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from backpropagate.events import CampaignExtended
from backpropagate.judge.campaign import Facts
from backpropagate.keep import history, journal, runs
from backpropagate.keep.changed_data import Files, changed
from backpropagate.keep.differences import Difference, differences
from backpropagate.wishes.build_spec import data_spec
from backpropagate.wishes.campaign_data import Window, enough, replayed, task_names
from backpropagate.wishes.campaign_spec import replay_ratio
from backpropagate.wishes.row_counts import Counter
from backpropagate.wishes.settings import Settings
from backpropagate_protocol.errors import (
    ConfigurationError,
    DatasetError,
    DatasetNotFoundError,
    RunNotFoundError,
    UserInputError,
)
from backpropagate_protocol.rundir import RunDir
from backpropagate_protocol.spec import CampaignSpec, DataSpec, RunSpec

SESSION_KIND = "multi_run"  # of a campaign's row in the history
_SHOWN = 4


def unfinished(output: str) -> RunDir | None:
    """The newest campaign of the folder, if it has not come to its end. An older one that was left for it does not count."""
    folder = runs.as_output(output)
    for row in history.list_rows(folder):
        if row.session_kind == SESSION_KIND:
            return None if row.status == "completed" else folder.run(row.run_id)
    return None


def to_go_on_with(spec: RunSpec) -> RunDir | None:
    """An unfinished campaign in the same folder that was begun with these wishes; None: there is none.

    Raises ConfigurationError if it was begun with others.
    """
    earlier = unfinished(spec.output)
    if earlier is not None:
        same_wishes(earlier, spec)
    return earlier


def same_wishes(earlier: RunDir, spec: RunSpec) -> None:
    """Raises ConfigurationError, naming what differs and both ways on, if it was begun with other wishes."""
    differing = differences(runs.load_spec(earlier), spec)
    differing = [each for each in differing if not each.name.startswith(("faults", "safety.", "report_offline"))]
    if not differing:
        return
    more = f", and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
    named = ", ".join(map(_in_words, differing[:_SHOWN]))
    raise ConfigurationError(
        f"campaign {earlier.run_id[:8]} in {earlier.output.path} is not finished, and was begun with other wishes: {named}{more}",
        suggestion=f"Go on with it: {runs.resuming(earlier)}. Or begin anew beside it: the same command with --fresh.",
        run_id=earlier.run_id,
    )


def _in_words(difference: Difference) -> str:
    return f"{difference.name} {_value(difference.first)} (now {_value(difference.second)})"


def _value(value: object) -> str:
    return "-" if value is None else str(value)


def campaign(run_dir: RunDir) -> tuple[RunSpec, CampaignSpec]:
    """The spec of a run that is a campaign, with the runs that were appended since. Raises UserInputError for any other."""
    spec = runs.load_spec(run_dir)
    if spec.campaign is None:
        owner = spec.parent
        raise UserInputError(
            f"run {run_dir.run_id[:8]} is " + (f"a run of campaign {owner[:8]}" if owner else "no campaign"),
            suggestion=f"Name the campaign: {owner[:8]}" if owner else "`backprop list-runs` shows which runs are.",
            run_id=run_dir.run_id,
        )
    facts = Facts.of(spec)
    for event in journal.read(run_dir.events):
        facts.event(event)
    whole = msgspec.structs.replace(
        spec.campaign,
        runs=tuple(link.data for link in facts.links),
        names=tuple(link.name for link in facts.links),
    )
    return spec, whole


def newest(output: str, flag: str = "--output") -> RunDir:
    """The newest campaign of a folder. Raises RunNotFoundError if there is none. flag: by which the folder is named."""
    folder = runs.as_output(output)
    for row in history.list_rows(folder):
        if row.session_kind == SESSION_KIND:
            return folder.run(row.run_id)
    raise RunNotFoundError(
        f"there is no campaign in {folder.path}",
        suggestion=f"Name the output folder that it was started with: {flag} FOLDER; or begin one: backprop multi-run --data DATA",
    )


def named_campaign(output: str, name: str | None, flag: str = "--output") -> RunDir:
    """The campaign whose id begins so; None and `latest` are the newest one, whatever was exported since.

    Raises RunNotFoundError. That it is a campaign is not looked into.
    """
    return newest(output, flag) if name in (None, "latest") else runs.find(output, name or "")


@dataclass(frozen=True, slots=True)
class Extension:
    """What one more run of a campaign trains on, its task's name, and what there is to be said about it."""

    data: DataSpec
    name: str
    said: tuple[str, ...] = ()


def appended(run_dir: RunDir, settings: Settings, new: str, counter: Counter) -> Extension:
    """One more run of a finished campaign, on `new`.

    The way rows are read, held out and replayed is the campaign's own; only --replay may be said anew. Runs whose files are
    gone or changed are not replayed, and that is said. Raises for data that cannot be used, or were appended before.
    """
    spec, whole = campaign(run_dir)
    facts = Facts.of(spec)
    more = 0
    for event in journal.read(run_dir.events):
        facts.event(event)
        more += isinstance(event, CampaignExtended)
    files = Files()
    pattern = msgspec.structs.replace(whole.runs[0], start=0, samples=None, replay=())
    data = msgspec.structs.replace(pattern, source=data_spec(settings, new).source)
    said = _seen_before(run_dir, facts, data, files, given=len(facts.links) - more)
    rows = counter(data)
    enough(rows, 1, data.source)
    if data.holdout > rows:
        raise DatasetError(
            f"{data.source} has {rows} rows, and this campaign holds out every {data.holdout}th",
            suggestion=f"Collect at least {data.holdout} rows for a run of it.",
        )
    window = Window(0, rows)
    name = task_names([data], [window], whole.names)[0]
    ratio = replay_ratio(settings) if settings["campaign.replay"].explicit else whole.replay
    lost = changed(facts, files.digest)
    for link in facts.links:
        source = Path(link.data.source)
        if ratio and settings["campaign.replay"].explicit and source.is_absolute() and not source.exists():
            raise DatasetNotFoundError(f"{source}, which an earlier run trained on, is not there any more")
    kept = [link.data for link in facts.links if link.number not in lost]
    if ratio:
        said += [f"{'nothing earlier' if not kept else f'run {n}'} is replayed{'' if not kept else ' no more'}: {why}" for n, why in lost.items()]  # fmt: skip
    windows = [_window(each, counter) for each in kept] if ratio else []
    seed = spec.train.seed + len(whole.runs)
    again = replayed(kept, windows, window.trained(data.holdout), ratio, seed) if ratio else ()
    return Extension(msgspec.structs.replace(data, samples=rows, replay=again), name, tuple(said))


def _seen_before(run_dir: RunDir, facts: Facts, data: DataSpec, files: Files, *, given: int) -> list[str]:
    """Raises ConfigurationError for a file that an appended run was trained on, as it is now; a word for any other run's."""
    if not Path(data.source).is_absolute():
        return []
    said = []
    for link in facts.links:
        if link.data.source != data.source or facts.trained[link.number].source_digest != files.digest(data.source):
            continue
        if link.number > given:
            raise ConfigurationError(
                f"{data.source} was appended before, as run {link.number} ({link.name}), and is the same since",
                suggestion="Nothing is left to do. To train on the same rows once more, copy the file to another name.",
                run_id=run_dir.run_id,
            )
        said.append(f"run {link.number} ({link.name}) was trained on the same file: it is trained on once more")
    return said


def _window(data: DataSpec, counter: Counter) -> Window:
    """The rows that an earlier run had."""
    return Window(data.start, data.samples if data.samples is not None else counter(data))
