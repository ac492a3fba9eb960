"""The training of a run: its policy, its card and its children, and what is kept of it."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import anyio

from backpropagate.doors.environ import environment
from backpropagate.drive import changed_data
from backpropagate.drive.aside import aside
from backpropagate.drive.driver import Driver
from backpropagate.drive.reporter import Reporter
from backpropagate.drive.stops import Stops
from backpropagate.events import Noticed
from backpropagate.judge.decisions import Finish
from backpropagate.judge.estimate import Gpu, Sizing
from backpropagate.judge.policy import Policy
from backpropagate.judge.start import Start
from backpropagate.keep import results
from backpropagate.keep.record import RunRow, finite
from backpropagate.sensors.card import Card, Reservation
from backpropagate.wishes.estimating import sizing_of
from backpropagate_protocol import durable
from backpropagate_protocol.catalogue import CATALOGUE, ExitCode
from backpropagate_protocol.durable import NotWhole
from backpropagate_protocol.redact import redact
from backpropagate_protocol.rundir import Manifest, RunDir
from backpropagate_protocol.spec import RunSpec

_ADAPTER = "adapter_config.json"
_ASK_AGAIN = 0.5  # seconds


@dataclass(frozen=True, slots=True)
class Kept:
    """What there is of a training: its result, or how far it has come. `adapter`: the folder of the result."""

    step: int = 0
    total_steps: int = 0
    samples_seen: int = 0
    order: int = 0
    loss: float | None = None
    adapter: str | None = None
    revision: str = ""  # of a hub's model: the commit that was trained on
    best_step: int = 0  # the step whose weights the result has, if its held-out loss chose it
    stopped_early: bool = False


def from_row(row: RunRow) -> Kept:
    """As far as an earlier supervisor came."""
    return Kept(row.steps, row.total_steps, row.samples_seen, row.order, row.final_loss)


def finished(run_dir: RunDir) -> Kept | None:
    """The result of a training that is complete: the adapter appears only then, and only whole. Reads all of it.

    Raises OSError if it is there and cannot be read now: that is no reason to train again.
    """
    try:
        manifest = durable.verify_dir(run_dir.adapter)
    except NotWhole:
        return None
    return _result(run_dir, manifest) if manifest.run_id == run_dir.run_id else None


def _result(run_dir: RunDir, m: Manifest) -> Kept:
    adapter, early = str(run_dir.adapter), m.step < m.total_steps
    return Kept(
        m.step, m.total_steps, m.samples_seen, m.order, finite(m.loss), adapter, m.model_revision, m.best_step, early
    )


class Training:
    """One supervisor's share of it. `recoveries`, `kept`: after `run`."""

    def __init__(
        self,
        spec: RunSpec,
        run_dir: RunDir,
        report: Reporter,
        stops: Stops,
        start: Start,
        gpu_script: Path | None,
        reserved: Reservation | None = None,
    ) -> None:
        self._spec, self._run_dir, self._report, self._stops, self._start = spec, run_dir, report, stops, start
        known = start.micro_batch if start.attempts else None
        self.card = Card(spec, gpu_script, known, reserved=reserved, sizing=self._sizing)
        self._policy = Policy(spec, replace(start, wait_for_card=self.card.wanted), random.random())

    @property
    def recoveries(self) -> int:
        return self._policy.recoveries

    async def run(self) -> Finish:
        """Trains to the end. Raises, if nothing was told of the run yet, BusyError if the card is taken, and RUNTIME_GPU_OOM if
        the training cannot fit on it."""
        wish = self._spec.safety.standby
        driver = Driver(self._spec, self._run_dir, self._policy, self._report, self.card, self._stops, standby=wish)
        try:
            async with anyio.create_task_group() as beside:
                beside.start_soon(self._tell_of_changed_data)
                finish = await driver.drive()
                beside.cancel_scope.cancel()
        finally:
            self.card.release()
        refused, busy = self.card.refused, self.card.busy
        if refused is not None:
            if not self._report.begun:
                raise refused
            return Finish("failed", refused.exit_code, refused.code, refused.message, refused.suggestion)
        if busy is None:
            return finish
        if not self._report.begun:
            raise busy
        return Finish("interrupted", busy.info.exit, busy.info.code, busy.message, busy.suggestion)

    async def _tell_of_changed_data(self) -> None:
        """Once in the life of a supervisor. A run that is not told of yet may still be turned away."""
        text = await aside(partial(changed_data.warning, self._spec, self._start))
        if text is None:
            return
        while not self._report.begun:
            await anyio.sleep(_ASK_AGAIN)
        self._report.event(Noticed(time=time.time(), run_id=self._spec.run_id, level="warning", text=redact(text)))

    def _sizing(self, gpu: Gpu) -> Sizing | None:
        return sizing_of(self._spec, gpu, environment())

    def kept(self, finish: Finish) -> Kept:
        """What is there now."""
        kept, done = self._policy.committed, self._policy.result
        if finish.exit_code is ExitCode.DONE and done is not None:
            adapter, loss = self._run_dir.adapter, finite(done.final_loss)
            total, revision = self._policy.total_steps, results.trained_revision(adapter)
            chosen = (done.best_step, done.stopped_early)
            return Kept(done.step, total, done.samples_seen, done.order, loss, str(adapter), revision, *chosen)
        if kept is None:
            return Kept(total_steps=self._policy.total_steps)
        return Kept(kept.step, self._policy.total_steps, kept.samples_seen, kept.order, finite(kept.loss))


def published(run_dir: RunDir) -> Finish | None:
    """A finished adapter gets its second place, `<output>/lora`; the end of the run if that fails: partial.

    A whole model keeps its one place: a second would cost its size once more.
    """
    if not (run_dir.adapter / _ADAPTER).is_file():
        return None
    try:
        results.publish_adapter(run_dir.adapter, run_dir.output)
    except OSError as error:
        info = CATALOGUE["RUNTIME_LORA_EXPORT_FAILED"]
        text = f"the adapter is in {run_dir.adapter}, but could not be copied: {error.strerror or error}"
        return Finish("partial", info.exit, info.code, text, info.remedy)
    return None
