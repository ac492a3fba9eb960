"""The user's functions: what they are called with, and the sink that calls them as a run goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from backpropagate import events
from backpropagate.api.blame import blame
from backpropagate.api.campaign_result import CampaignRun, CampaignSummary
from backpropagate.api.follow import StopFollowing
from backpropagate.api.result import TrainingRun
from backpropagate.events import Event
from backpropagate.keep.past import TRAINED
from backpropagate_protocol.errors import BackpropagateError
from backpropagate_protocol.rundir import RunDir


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingCallback:
    """Functions to be called as the run goes on; those that are None are not.

    on_step      (step, loss) once for every optimizer step, in order; returning False stops the run, after a checkpoint. Fast
                 steps are reported several at a time, those of very long runs thinned: they are told together, each with the
                 loss of the last of them. Steps that a fault made the run do again are not told again
    on_epoch     (number) after every whole pass over the data
    on_evaluate  (step, loss) after the held-out rows were scored
    on_save      (path) after every checkpoint
    on_recovery  (what) after every fault that is being recovered from, in words
    on_complete  (run) at the end, also of an interrupted run
    on_error     (error) before a failed run's error is raised

    Once one of them has raised, the run goes on, and only on_complete and on_error are still called. Python's warnings tell
    where it failed, and so does `callback_error` of the result.
    """

    on_step: Callable[[int, float | None], bool | None] | None = None
    on_epoch: Callable[[int], object] | None = None
    on_save: Callable[[Path], object] | None = None
    on_recovery: Callable[[str], object] | None = None
    on_complete: Callable[[TrainingRun], object] | None = None
    on_error: Callable[[BackpropagateError], object] | None = None
    on_evaluate: Callable[[int, float], object] | None = None


class Calls:
    """The user's functions as a sink. The first that raises is the last: `follow` drops the sink and says so."""

    def __init__(
        self, callback: TrainingCallback | None, on_step: Callable[[int, float | None], bool | None] | None
    ) -> None:
        self._callback = callback or TrainingCallback()
        self._on_step = [call for call in (self._callback.on_step, on_step) if call is not None]
        self._epochs: int | None = None  # whole passes that were told; None: the first step will say where we are
        self._steps: int | None = None  # the last step that was told; None: the model will say where we are
        self.run_dir: RunDir | None = None
        self.error = ""  # of the one that raised

    def event(self, event: Event) -> None:
        try:
            self._call(event)
        except StopFollowing:
            raise
        except Exception as error:
            self.error = blame(error).short
            raise

    def _call(self, event: Event) -> None:
        if isinstance(event, events.Step):
            self._epoch(event)
            self._until(event)
        elif isinstance(event, events.ModelReady):
            self._steps = event.step if self._steps is None else self._steps
            self._epochs = 0 if event.step == 0 and self._epochs is None else self._epochs
        elif isinstance(event, events.LinkStarted):
            self._epochs = self._steps = None
        elif isinstance(event, events.CheckpointCommitted) and self._callback.on_save and self.run_dir:
            trained = self.run_dir.output.run(event.run_id)  # of a campaign, one of its runs
            self._callback.on_save(trained.checkpoint(event.step))
        elif isinstance(event, events.Evaluation) and self._callback.on_evaluate:
            self._callback.on_evaluate(event.step, event.loss)
        elif isinstance(event, events.Recovering) and self._callback.on_recovery:
            self._callback.on_recovery(event.reason)

    def _until(self, now: events.Step) -> None:
        """Every step since the last one told, so that whoever waits for each fiftieth meets it."""
        told = now.step - 1 if self._steps is None else self._steps
        if not self._on_step:
            return
        for number in range(told + 1, now.step + 1):
            self._steps = number
            if [call for call in self._on_step if call(number, now.loss) is False]:
                raise StopFollowing

    def _epoch(self, step: events.Step) -> None:
        """Passes that a fault made us do again are not told again; of a step's number in floats, a hair may be missing."""
        done = int(step.epoch + 1e-6)
        told = done if self._epochs is None else self._epochs
        self._epochs = max(done, told)
        if self._callback.on_epoch:
            for number in range(told + 1, done + 1):
                self._callback.on_epoch(number)

    def completed(self, run: TrainingRun) -> None:
        if self._callback.on_complete:
            self._callback.on_complete(run)

    def failed(self, error: BackpropagateError) -> None:
        if self._callback.on_error:
            self._callback.on_error(error)

    def close(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class CampaignCallbacks:
    """What the user gave a campaign to call. on_run_complete: after each run, once it is merged and, if it is to be, scored."""

    callback: TrainingCallback | None
    on_step: Callable[[int, float | None], bool | None] | None
    on_run_complete: Callable[[CampaignRun], object] | None


class CampaignCalls(Calls):
    """The same for a campaign. Its callback's on_complete is not called: that is told of trainings."""

    def __init__(self, wanted: CampaignCallbacks, summary: CampaignSummary) -> None:
        """`summary` must be told of each event before, and know by now what earlier supervisors did."""
        super().__init__(wanted.callback, wanted.on_step)
        self._on_run_complete, self._summary = wanted.on_run_complete, summary
        before = summary.latest()
        self._told = before.number if before else 0

    def _call(self, event: Event) -> None:
        super()._call(event)
        if self._on_run_complete is None:
            return
        scored = isinstance(event, events.LinkScored | events.LinkStarted | events.RunEnded)
        if scored or (isinstance(event, events.StageEnded) and event.stage == TRAINED):
            run = self._summary.latest()
            if run is not None and run.number > self._told:
                self._told = run.number
                self._on_run_complete(run)
