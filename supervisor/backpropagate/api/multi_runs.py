"""The campaigns of `Trainer`: begun, gone on with, or given one more run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from backpropagate.api.callbacks import CampaignCallbacks, CampaignCalls, TrainingCallback
from backpropagate.api.campaign_result import Campaign, CampaignRun, CampaignSummary
from backpropagate.api.trainer_base import TrainerBase
from backpropagate.drive.extending import extend
from backpropagate.keep import runs
from backpropagate.keep.journal import read
from backpropagate.wishes.campaign_again import appended, named_campaign, to_go_on_with
from backpropagate.wishes.campaign_spec import campaign_run, room_for
from backpropagate.wishes.later import without_later
from backpropagate.wishes.notices import notices
from backpropagate.wishes.row_counts import counted_by_command
from backpropagate.wishes.settings import Settings
from backpropagate.wishes.together import check_of_export
from backpropagate_protocol.errors import UserInputError
from backpropagate_protocol.rundir import RunDir

Data = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class MultiRuns(TrainerBase):
    """campaigns: those that this Trainer followed to their end, the newest last."""

    def __init__(self, given: Mapping[str, object], *, progress: bool) -> None:
        super().__init__(given, progress=progress)
        self.campaigns: list[Campaign] = []

    def multi_run(
        self,
        dataset: Data | None = None,
        num_runs: int | None = None,
        steps_per_run: int | None = None,
        samples_per_run: int | None = None,
        merge_mode: str | None = None,
        *,
        replay_ratio: float | None = None,
        merge_floor: float | None = None,
        merge_weight: float | None = None,
        density: float | None = None,
        holdout: int | None = None,
        evaluate: bool | None = None,
        eval_rows: int | None = None,
        early_stop: int | None = None,
        resume: str | None = None,
        fresh: bool = False,
        callback: TrainingCallback | None = None,
        on_step: Callable[[int, float | None], bool | None] | None = None,
        on_run_complete: Callable[[CampaignRun], object] | None = None,
        **more: object,
    ) -> Campaign:
        """Trains a campaign: several runs, merged after each into one adapter; blocks until it has ended.

        dataset          one file or hub id, cut into `num_runs` (5) runs of `samples_per_run` (1000) rows; or a list of them,
                         one run each, in order
        steps_per_run    optimizer steps of each run (100)
        merge_mode       slao (default), slao-product, ema, average, ties, dare, none, auto: docs/multi-run.md
        replay_ratio     share of a run's rows that are rows of earlier runs (0.1 as soon as there are any)
        holdout          every N-th row is held out, to see what was forgotten (20); 0: none
        early_stop       end after so many runs without a better average held-out loss; 0: never
        resume           a campaign's id, a prefix of one, or "latest": go on with it. Without it, an unfinished one in the same
                         output folder that was begun with the same wishes is gone on with, unless `fresh`
        on_run_complete  called with a CampaignRun after each run

        The other arguments are those of `train` and of docs/settings.md. Ctrl-C as in `train`. Raises as `train`, and
        ConfigurationError where an unfinished campaign was begun with other wishes.
        """
        said: dict[str, object] = {
            "data": dataset,
            "steps": steps_per_run,
            "runs": num_runs,
            "samples_per_run": samples_per_run,
            "merge": merge_mode,
            "replay_ratio": replay_ratio,
            "merge_floor": merge_floor,
            "merge_weight": merge_weight,
            "density": density,
            "holdout": holdout,
            "evaluate": evaluate,
            "eval_rows": eval_rows,
            "early_stop": early_stop,
        }
        given = _joined(said, without_later(more))
        calls = CampaignCallbacks(callback, on_step, on_run_complete)
        if resume is not None:
            extra = [*given, *(["fresh"] if fresh else [])]
            if extra:
                raise UserInputError(
                    f"a campaign keeps the data and settings it began with; {', '.join(extra)} cannot change them",
                    suggestion="Leave these arguments out, or begin a new one.",
                )
            return self._campaign(self._resumable(resume, campaigns=True), calls)
        sources = _named(given.pop("data", None))
        settings = Settings({**self._given, **given})
        check_of_export(settings, given)
        wanted = campaign_run(settings, sources, counted_by_command, verbose=settings.flag("debug"))
        self._tell([*notices(settings), *wanted.notices])
        earlier = None if fresh else to_go_on_with(wanted.spec)
        if earlier is not None:
            self._tell([f"campaign {earlier.run_id[:8]} was not finished and is gone on with"])
            return self._campaign(earlier, calls)
        room_for(wanted.spec)
        run_dir = runs.create(wanted.spec)
        with runs.beginning(run_dir):
            return self._campaign(run_dir, calls)

    def multi_run_train(
        self,
        data: Data | None = None,
        runs: int | None = None,
        steps_per_run: int | None = None,
        samples_per_run: int | None = None,
        replay_ratio: float | None = None,
        merge: str | None = None,
        *,
        resume: str | None = None,
        callback: TrainingCallback | None = None,
        on_run_complete: Callable[[CampaignRun], object] | None = None,
    ) -> Campaign:
        """`multi_run`, in the words of the command line."""
        return self.multi_run(
            data,
            runs,
            steps_per_run,
            samples_per_run,
            merge,
            replay_ratio=replay_ratio,
            resume=resume,
            callback=callback,
            on_run_complete=on_run_complete,
        )

    def append_run(
        self,
        data: str | os.PathLike[str],
        campaign: str | None = None,
        *,
        replay_ratio: float | None = None,
        callback: TrainingCallback | None = None,
        on_step: Callable[[int, float | None], bool | None] | None = None,
        on_run_complete: Callable[[CampaignRun], object] | None = None,
    ) -> Campaign:
        """Gives a finished campaign one more run, on new data; blocks until that has ended.

        campaign: its id, or a prefix of it; None: the newest of the output folder. Raises as `multi_run`, and
        ConfigurationError for a campaign that is not finished, or data that were appended to it before.
        """
        settings = Settings({**self._given, "replay_ratio": replay_ratio})
        output = settings.text("training.output_dir")
        run_dir = named_campaign(output, campaign)
        python = runs.load_spec(run_dir).runner_python
        counter, new = counted_by_command(python), os.fspath(data)
        one_more = extend(
            run_dir,
            lambda: appended(run_dir, settings, new, counter),
            wait=settings.flag("safety.wait"),
            tell=lambda line: self._tell([line]),
        )
        self._tell(one_more.said)
        return self._campaign(run_dir, CampaignCallbacks(callback, on_step, on_run_complete))

    def _campaign(self, run_dir: RunDir, wanted: CampaignCallbacks) -> Campaign:
        summary = CampaignSummary(run_dir)
        for event in read(run_dir.events):  # what earlier supervisors did
            summary.event(event)
        calls = CampaignCalls(wanted, summary)
        calls.run_dir = run_dir
        ended = self._watch(run_dir, [summary, calls], Settings(self._given).flag("safety.wait"))
        campaign = replace(summary.campaign(), callback_error=calls.error)
        self.campaigns.append(campaign)
        self._newest = campaign.run_id
        if ended.status in ("failed", "partial"):
            error = self._failure(run_dir, ended)
            calls.failed(error)
            raise error
        if ended.status == "interrupted" and self._progress:
            done = f"interrupted after {len(campaign.runs)} of {campaign.total_runs} runs"
            sys.stderr.write(f"{done}; go on with: {runs.resuming(run_dir)}\n")
        return campaign


_SAME = {"samples": "samples_per_run"}  # of a campaign's runs, as on the command line


def _joined(said: Mapping[str, object], more: Mapping[str, object]) -> dict[str, object]:
    """All that was given, by the names of the settings. Raises UserInputError for what was said twice in other words."""
    given = {name: value for name, value in said.items() if value is not None}
    for word, value in more.items():
        name = _SAME.get(word, word)
        if value is None:
            continue
        if name in given:
            raise UserInputError(f"{word} was given twice, in two words", suggestion="Give one of them.")
        given[name] = value
    return given


def _named(data: object) -> list[str]:
    """Raises UserInputError for what names no data."""
    if data is None:
        return []
    each = data if isinstance(data, list | tuple) else [data]
    named = [os.fspath(one) for one in each if isinstance(one, str | os.PathLike)]
    if len(named) != len(each):
        raise UserInputError(
            f"dataset: {type(data).__name__} is no path, no hub id and no list of them",
            suggestion="Save the rows to a file first, and give its path.",
        )
    return named
