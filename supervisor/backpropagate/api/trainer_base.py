"""What every method of `Trainer` needs: its wishes, and the supervisor of a run as a process that is started and followed."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from backpropagate.api.estimating import estimated
from backpropagate.api.follow import follow
from backpropagate.doors.environ import environment
from backpropagate.doors.launch import start
from backpropagate.events import RunEnded
from backpropagate.judge.estimate import Estimate
from backpropagate.keep import history, runs
from backpropagate.keep.journal import Follower
from backpropagate.watch.console import sink_for
from backpropagate.watch.notebook import NotebookSink, in_notebook
from backpropagate.watch.sinks import Sink
from backpropagate.wishes.campaign_again import named_campaign
from backpropagate.wishes.later import without_later
from backpropagate.wishes.settings import Settings
from backpropagate_protocol.errors import BackpropagateError, UserInputError, error_for
from backpropagate_protocol.rundir import RunDir


class TrainerBase:
    """given: the arguments that were not None. progress: whether anything is shown."""

    def __init__(self, given: Mapping[str, object], *, progress: bool) -> None:
        self._given = dict(given)
        self._progress = progress
        self._newest = "latest"  # the run that is meant if none is named

    def estimate(
        self,
        data: str | os.PathLike[str] | None = None,
        *,
        gpu: str | None = None,
        vram_gb: float | None = None,
        calibrate: bool = False,
        **more: object,
    ) -> Estimate:
        """What a training of `train(data, **more)` will take, before anything is loaded: memory by part, disk, time, energy.

        gpu, vram_gb   a card by its name and its memory in GB; None: the one that is here, if there is one
        calibrate      train ten real steps on the longest rows first, in a child, and remember what they took: needs `data`, the
                       main thread, and no running event loop

        Sizes in bytes, times in seconds. Raises InvalidSettingError, UserInputError (INPUT_MODEL_NOT_FOUND where nothing is known of
        the base), and with `calibrate` whatever a training raises.
        """
        given: dict[str, object] = {"data": None if data is None else os.fspath(data), **without_later(more)}
        said = {name: value for name, value in given.items() if value is not None}
        settings = Settings({**self._given, **said})
        return estimated(settings, gpu=gpu, vram_gb=vram_gb, calibrate=calibrate)[1]

    def _tell(self, lines: Sequence[str]) -> None:
        if self._progress:
            for line in lines:
                sys.stderr.write(f"note: {line}\n")

    def _watch(self, run_dir: RunDir, sinks: Sequence[Sink], wait: bool) -> RunEnded:
        """Starts the supervisor and follows it; `sinks` are told what is new, and so is whoever looks on."""
        follower = Follower(run_dir.events, from_end=True)
        shown = _display(verbose=Settings(self._given).flag("debug")) if self._progress else []
        first, *others = sinks
        try:
            with start(run_dir, owned=True, wait=wait) as supervisor:
                return follow(supervisor, follower, [first, *shown, *others])
        finally:
            for sink in shown:
                sink.close()

    def _failure(self, run_dir: RunDir, ended: RunEnded) -> BackpropagateError:
        return error_for(
            ended.code or "RUNTIME_TRAINING_FAILED",
            ended.message or "the run failed",
            suggestion=ended.suggestion.replace("backprop resume RUN", runs.resuming(run_dir)) or None,
            run_id=run_dir.run_id,
        )

    def _resumable(self, run: str, *, campaigns: bool) -> RunDir:
        """Raises for what is not there, of the other kind, or complete."""
        output = Settings(self._given).text("training.output_dir")
        run_dir = named_campaign(output, run) if campaigns else history.to_resume(output, run)
        if (runs.load_spec(run_dir).kind == "campaign") is not campaigns:
            raise UserInputError(
                f"run {run_dir.run_id[:8]} is {'no' if campaigns else 'a'} campaign",
                suggestion=f"Say {'resume' if campaigns else 'multi_run'}({'' if campaigns else 'resume='}{run!r}).",
                run_id=run_dir.run_id,
            )
        if history.show(run_dir).status == "completed":
            raise error_for("STATE_RUN_FINISHED", "the run is complete", run_id=run_dir.run_id)
        return run_dir


def _display(*, verbose: bool) -> list[Sink]:
    return [NotebookSink() if in_notebook() else sink_for(sys.stderr, environment(), verbose=verbose)]
