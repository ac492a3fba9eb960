"""What a backend gets from the runner: where to say how far it is, what to do at a step boundary, and how to save.

The implementation of `backpropagate_backends.base.Session`. Invariants, beside those of `saver`, which writes the checkpoints:
1. No loss or gradient norm that is not finite gets into a checkpoint.
2. Whatever hangs on a checkpoint waits for the one under way: the next one, an evaluation, a stop, the result.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from backpropagate_backends.base import Directive, Score, Write
from backpropagate_protocol import weights
from backpropagate_protocol.durable import DISK, Disk, discard
from backpropagate_protocol.errors import LossDivergedError
from backpropagate_protocol.jobs import TrainJob
from backpropagate_protocol.landmarks import IMPORTED
from backpropagate_protocol.messages import (
    Phase,
    Progress,
    Rehearsed,
    Started,
    TrainResult,
)
from backpropagate_protocol.prepared import Prepared
from backpropagate_protocol.rundir import Manifest, RunDir
from backpropagate_protocol.spec import spec_digest
from backpropagate_protocol.swap import rename_over
from backpropagate_runner.cadence import Cadence
from backpropagate_runner.channel import Channel
from backpropagate_runner.checkpoint import commit
from backpropagate_runner.control import Control
from backpropagate_runner.drill import Drill
from backpropagate_runner.evaluations import Evaluations
from backpropagate_runner.held_out import HeldOutWatch
from backpropagate_runner.saver import SETTLE_SECONDS, Order, Outcome, Saver
from backpropagate_runner.shrinking import Shrinking, in_pieces
from backpropagate_runner.voice import Voice

_LAST_SAVE_SECONDS = 60.0


class TrainSession:
    """One TrainJob's session. `staging` is emptied when it is made."""

    def __init__(
        self,
        job: TrainJob,
        resume: Manifest | None,
        voice: Voice,
        channel: Channel,
        control: Control,
        drill: Drill,
        *,
        data_digest: str,
        backend: str,
        packages: dict[str, str],
        held_out: Prepared | None = None,
        disk: Disk = DISK,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.job, self.resume = job, resume
        self.run = RunDir(Path(job.run_dir))
        self.staging = self.run.staging / f"attempt-{job.attempt}"
        discard(self.run.staging)
        self.staging.mkdir(parents=True, exist_ok=True)
        self.run.checkpoints.mkdir(exist_ok=True)
        self.saved_step = resume.step if resume else 0
        self._voice, self._channel, self._control = voice, channel, control
        self._disk, self._clock = disk, clock
        self._drill = drill
        self._save_began = 0.0
        self._goes_on = False  # whether another step follows the last one that was done
        safety = job.spec.safety
        self._saver = Saver(self.run, safety.keep_checkpoints, job.spec.train.keep_best, channel, drill, disk, clock)
        self._cadence = Cadence(job.spec.safety.save_steps, job.spec.safety.save_seconds, 0, 0.0)
        self._shrinking = Shrinking(job, voice, channel, lambda: voice.others)
        self._in_pieces = False
        self._total_steps = resume.total_steps if resume else 0
        self._evaluations = Evaluations(job.spec, resume.standing if resume else None)
        self._held_out = HeldOutWatch(held_out, self._evaluations, self.run, voice, channel, control, drill, clock)
        self._stamp = Manifest(
            run_id=job.spec.run_id,
            step=0,
            total_steps=0,
            samples_seen=0,
            order=0,
            micro_batch=job.micro_batch,
            accumulation=job.accumulation,
            data_digest=data_digest,
            spec_digest=spec_digest(job.spec),
            backend=backend,
            packages=packages,
            optimizer=resume.optimizer if resume else "",
            precision=resume.precision if resume else "",
            model_revision=resume.model_revision if resume else "",
        )
        voice.step = self.saved_step

    # --- where it is ------------------------------------------------------------------------------------------------

    def phase(self, phase: Phase, done: int = 0, total: int = 0, detail: str = "") -> None:
        self._voice.phase(phase, done, total, detail)

    def notice(self, text: str, level: str = "info") -> None:
        self._voice.notice(text, level)

    def started(self, started: Started) -> None:
        safety = self.job.spec.safety
        self._total_steps = started.total_steps
        self._cadence = Cadence(safety.save_steps, safety.save_seconds, started.total_steps, self._clock())
        self._stamp = msgspec.structs.replace(
            self._stamp,
            optimizer=started.optimizer,
            precision=started.precision,
            model_revision=started.model_revision,
        )
        self._channel.send(started)
        sys.stderr.write(f"{IMPORTED}\n")
        sys.stderr.flush()
        self.phase(Phase.FIRST_STEP)
        self._channel.settle(SETTLE_SECONDS)
        self._control.begin_training()

    # --- the step boundary ------------------------------------------------------------------------------------------

    def before_step(self, step: int) -> None:
        self._shrinking.before_step(step)
        if self._in_pieces:
            raise in_pieces()
        if self._drill.plans(step):
            self.settle()  # a planned fault finds the same checkpoints at every time
        elif not self._saver.busy:
            self._take_outcome(self._saver.wait())
        if not self._saver.busy:
            self._held_out.before_step(self.saved_step)
        self._drill.before_step(step)

    def within(self, place: str) -> None:
        try:
            self._drill.within(place, self._shrinking.step)
        finally:
            self._voice.others = max(self._voice.others, self._drill.others)

    def step_done(self, progress: Progress, score: Score | None = None) -> Directive:
        progress = self._drill.after_step(progress)
        self._voice.step = progress.step
        for name, value in (("loss", progress.loss), ("gradient norm", progress.grad_norm)):
            if value is not None and not math.isfinite(value):
                raise LossDivergedError(f"the {name} of step {progress.step} is {value}")
        self._channel.progress(progress)
        if self._voice.where is Phase.FIRST_STEP:
            self.phase(Phase.TRAIN)
        step, total_steps = progress.step, progress.total_steps
        if self._evaluations.due(step, total_steps):
            self.settle()  # it has to be known whether the best so far was kept
        self._held_out.after_step(step, total_steps, score)
        # After the last step and its evaluation there is nothing left to stop: writing the result is all that remains.
        left = step < total_steps or self._evaluations.owed(step, total_steps)
        stop = self._control.stop if left else None
        finish = stop is None and self._evaluations.enough
        now = self._clock()
        save = (
            self._control.take_save()
            or self._cadence.due(step, now, self._saver.busy)
            or (stop is not None and stop.save)
        )
        save = save or finish or self._evaluations.kept_step == step
        self._in_pieces = self._shrinking.thrashes(progress) and step < total_steps
        save = save or self._in_pieces
        if finish:
            self._held_out.say_if_enough(step, total_steps)
        if save:
            self._save_began = now
            self.phase(Phase.CHECKPOINT)
            self.settle()
        self._goes_on = step < total_steps and stop is None and not finish and not self._in_pieces
        return Directive(save=save, stop=stop is not None, finish=finish)

    # --- memory -----------------------------------------------------------------------------------------------------

    def smaller(self, error: BaseException, others: int = 0) -> int | None:
        self.taken_by_others(others)
        return self._shrinking.smaller(error)

    def shrunk(self) -> None:
        self._shrinking.shrunk()
        micro = self._shrinking.micro_batch
        accumulation = self.job.spec.train.effective_batch // micro
        self._stamp = msgspec.structs.replace(self._stamp, micro_batch=micro, accumulation=accumulation)

    def taken_by_others(self, memory: int) -> None:
        self._voice.others = max(memory, self._drill.others)

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        self._shrinking.rehearse(going_on=True)
        self.phase(Phase.FIRST_STEP, detail="the longest rows")
        try:
            yield
        finally:
            self._shrinking.rehearse(going_on=False)

    def rehearsed(self, tokens: int, seconds: float, memory: int = 0) -> None:
        self._channel.send(Rehearsed(self._shrinking.micro_batch, tokens, seconds, memory))
        self.phase(Phase.FIRST_STEP)

    # --- the held-out rows ------------------------------------------------------------------------------------------

    def owes(self, total_steps: int) -> bool:
        return self.resume is not None and self._evaluations.owed(self.resume.step, total_steps)

    def make_up(self, total_steps: int, score: Score) -> None:
        if self.resume is not None:
            self._held_out.make_up(self.resume.step, total_steps, score)

    def ended(self, total_steps: int) -> bool:
        if self.resume is None:
            return False
        return self.resume.step >= total_steps or self._evaluations.enough

    def best(self) -> Path | None:
        self.settle()
        return self._held_out.best(self._voice.step)

    # --- saving -----------------------------------------------------------------------------------------------------

    def keep(self, staged: Path, progress: Progress, write: Write, *, copied: bool = True) -> None:
        self.settle()
        beside = copied and self._goes_on
        released = self._clock() if beside else math.inf
        order = Order(staged, self._manifest(progress), write, self._save_began, released)
        if beside:
            self._saver.begin(order)
        else:
            self._take_outcome(self._saver.do(order))
        self.phase(Phase.TRAIN)

    def save_failed(self, progress: Progress, error: BaseException) -> None:
        self.settle()
        for left in self.staging.iterdir():
            discard(left)
        self._saver.failed(progress.step, error)
        self._cadence.failed(self._save_began, self._clock())
        self.phase(Phase.TRAIN)

    def settle(self, timeout: float | None = None) -> None:
        """Waits for the checkpoint under way; the parent is told that this is what is being done."""
        if self._saver.busy:
            before = self._voice.where
            self.phase(Phase.CHECKPOINT)
            try:
                self._take_outcome(self._saver.wait(timeout))
            finally:
                self.phase(before)
        else:
            self._take_outcome(self._saver.wait())

    def let_go(self) -> None:
        """After a failure: what is being written is written to its end, since the training will go on from there."""
        with suppress(Exception):  # the failure that is being told is the one that counts
            self.settle(_LAST_SAVE_SECONDS)

    def _take_outcome(self, outcome: Outcome | None) -> None:
        if outcome is None:
            return
        order = outcome.order
        released = min(order.released, outcome.ended)
        if outcome.durable:
            self._cadence.saved(order.began, outcome.ended, released)
            self.saved_step = order.manifest.step
        else:
            self._cadence.failed(order.began, outcome.ended, released)
            self._held_out.before_step(self.saved_step)

    def finish(self, result: TrainResult) -> TrainResult:
        """Moves the result from staging to its place in the run directory, whole or not at all."""
        self.settle()
        self.phase(Phase.FINISH)
        whole, final = self.run.staging / "result", self.run.adapter
        manifest = self._manifest(
            Progress(result.step, self._total_steps, result.samples_seen, result.order, result.final_loss)
        )
        best = self._evaluations.kept_step
        manifest = msgspec.structs.replace(manifest, best_step=best)
        _, files = commit(Path(result.adapter), whole, manifest, self._disk)
        rename_over(whole, final, self._disk)  # there is one of an attempt that died between this and its Done
        digest = result.digest or weights.digest_of({name: entry.sha256 for name, entry in files.items()})
        return msgspec.structs.replace(
            result,
            adapter=str(final),
            digest=digest,
            best_step=best,
            stopped_early=result.step < self._total_steps and self._evaluations.enough,
        )

    def _manifest(self, progress: Progress) -> Manifest:
        return msgspec.structs.replace(
            self._stamp,
            step=progress.step,
            total_steps=progress.total_steps,
            samples_seen=progress.samples_seen,
            order=progress.order,
            loss=progress.loss,
            standing=self._evaluations.standing,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
