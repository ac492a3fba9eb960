"""`merge`: a campaign's runs merged once more, by another rule or other numbers; nothing is trained."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from backpropagate.commands.flags import Command, from_table
from backpropagate.screen import Screen, current
from backpropagate.wishes.options import Value
from backpropagate.wishes.settings import Settings
from backpropagate_protocol.errors import ConfigurationError, SLAOMergeError

if TYPE_CHECKING:
    from backpropagate.wishes.merge_again import Again
    from backpropagate_protocol.combined import Combined
    from backpropagate_protocol.rundir import OutputDir


@click.command(cls=Command)
@click.argument("campaign")
@from_table("campaign.merge")
@from_table("campaign.floor", "campaign.weight", "campaign.density", shorter={"campaign.floor": "--floor", "campaign.weight": "--weight"})  # fmt: skip
@click.option("-o", "--output", "destination", metavar="DIR", help="Also put the merged adapter into this folder, which must not exist yet.")  # fmt: skip
@click.option("--publish", is_flag=True, help="Make it the output folder's `lora`.")
@click.option("--in", "--runs", "output_dir", metavar="FOLDER", help="Output folder in which CAMPAIGN is looked up.  [default: ./output]")  # fmt: skip
def merge(campaign: str, destination: str | None, publish: bool, **given: Value) -> None:
    """Merge a campaign's runs once more, by any rule, without training.

    CAMPAIGN is a run id, any unique prefix of one, or `latest`, the newest campaign. The numbers are the campaign's own, unless they are given. With
    --merge auto every rule is tried, and the one with the best average accuracy on held-out rows is taken.
    """
    from backpropagate.keep import locks, merge_folders, results
    from backpropagate.keep.campaign_adapter import combined
    from backpropagate.wishes.campaign_again import named_campaign
    from backpropagate.wishes.merge_again import merge_again
    from backpropagate_protocol.combined import MERGED

    screen = current()
    settings = Settings(given)
    run_dir = named_campaign(settings.text("training.output_dir"), campaign, "--in")
    again = merge_again(run_dir, settings)
    _free(destination)
    with ExitStack() as held:
        if publish:
            held.enter_context(locks.hold(run_dir.output.lock, run_dir.run_id, f"the output folder {run_dir.output.path}"))  # fmt: skip
        held.enter_context(locks.hold(run_dir.lock, run_dir.run_id, f"the merges of campaign {run_dir.run_id[:8]}"))
        rule, scores = _made(screen, again)
        folder = run_dir.merge_again(rule)
        adapter = folder / MERGED
        if not merge_folders.whole(folder, MERGED):
            raise SLAOMergeError(
                f"{adapter} is not as it was written", suggestion="Look after the disk, then merge again."
            )
        places = {"adapter": str(adapter)}
        if destination is not None:
            places["copy"] = str(results.copy_adapter(adapter, Path(destination)))
        if publish:
            places["published"] = str(_published(run_dir.output, adapter))
        about = combined(folder)
    document: dict[str, object] = {
        "campaign": run_dir.run_id,
        "rule": rule,
        "runs": [
            {"run": link.number, "name": link.name, "coefficient": run.coefficient, "weight": run.weight}
            for link, run in zip(again.links, about.runs, strict=True)
        ],
        "notes": about.notes,
        "scores": scores,
        **places,
    }
    screen.data(document, "\n".join(_in_words(again, about, scores, places)))


def _free(destination: str | None) -> None:
    """What would only be found out after the merge is found out before it."""
    if destination is None:
        return
    path = Path(os.path.abspath(os.path.expanduser(destination)))
    if os.path.lexists(path):
        raise ConfigurationError(
            f"{path} is there already", code="CONFIG_OUTPUT_UNWRITABLE", suggestion="Choose another folder with -o."
        )
    from backpropagate.wishes.surroundings import writable_folder

    writable_folder(destination, least_mib=1, flag="-o")


def _made(screen: Screen, again: Again) -> tuple[str, dict[str, float]]:
    """The rule whose merge is to be taken, and with `auto` the average accuracy of each."""
    from backpropagate.doors.oneshot import run_job
    from backpropagate.wishes.merge_again import best
    from backpropagate.wishes.surroundings import check_backend, check_runner
    from backpropagate_protocol.measured import Evaluation
    from backpropagate_protocol.messages import Made

    spec = again.spec
    python = check_runner(spec.runner_python, "cpu", what="merging", needs=("numpy",))
    if again.evaluate is not None:
        check_backend(spec.backend)
        check_runner(spec.runner_python, spec.backend, what="scoring")
    for job in again.jobs:
        screen.note(f"merging {len(job.adapters)} {'run' if len(job.adapters) == 1 else 'runs'} by {job.rule}")
        for note in run_job(job, Made, backend="none", runner_python=python).notes:
            screen.note(f"note: {note}")
    if again.evaluate is None:
        return again.jobs[0].rule, {}
    screen.note("scoring them on held-out rows")
    answer = run_job(again.evaluate, Evaluation, backend=spec.backend, runner_python=python)
    return best(answer.scores)


def _published(output: OutputDir, adapter: Path) -> Path:
    from backpropagate.keep import results

    try:
        return results.publish_adapter(adapter, output)
    except OSError as error:
        raise ConfigurationError(
            f"{output.lora} cannot be written: {error.strerror or error}", code="RUNTIME_LORA_EXPORT_FAILED"
        ) from error


def _in_words(again: Again, about: Combined, scores: dict[str, float], places: dict[str, str]) -> list[str]:
    wide = max(len(link.name) for link in again.links)
    lines = [f"{rule:14} {accuracy:7.1%} on average" for rule, accuracy in sorted(scores.items(), key=lambda s: -s[1])]
    lines += [f"merged by {about.rule}: coefficient of each run when it was the newest, and its weight now"]
    lines += [
        f"{link.number:5}  {link.name:{wide}}  {run.coefficient:.3f}  {run.weight:.3f}"
        for link, run in zip(again.links, about.runs, strict=True)
    ]
    return lines + [f"{name:10} {place}" for name, place in places.items()]
