"""What a backend gets from the runner: where to say how far it is, what to do at a step boundary, and how to save.

The implementation of `backpropagate_backends.base.Session`. Invariants:
1. A checkpoint is announced only after it is durable under its final name.
2. A disk that is full or failing never ends the training from here: the partial goes, the failure is told.
3. No loss or gradient norm that is not finite gets into a checkpoint.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from backpropagate_backends.base import Directive, Score
from backpropagate_protocol import weights
from backpropagate_protocol.durable import DISK, Disk, discard, rename
from backpropagate_protocol.errors import DiskFullError, LossDivergedError
from backpropagate_protocol.jobs import TrainJob
from backpropagate_protocol.messages import (
    CheckpointFailed,
    CheckpointSaved,
    Phase,
    Progress,
    Started,
    TrainResult,
)
from backpropagate_protocol.prepared import Prepared
from backpropagate_protocol.redact import redact
from backpropagate_protocol.rundir import PARTIAL, Manifest, RunDir
from backpropagate_protocol.spec import spec_digest
from backpropagate_runner.cadence import Cadence
from backpropagate_runner.channel import Channel
from backpropagate_runner.checkpoint import commit, make_room, prune
from backpropagate_runner.control import Control
from backpropagate_runner.drill import Drill
from backpropagate_runner.evaluations import Evaluations
from backpropagate_runner.faults import is_disk_trouble
from backpropagate_runner.held_out import HeldOutWatch
from backpropagate_runner.voice import Voice

_SETTLE_SECONDS = 0.2  # a parent that reads needs a thousandth of it


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
        self._failures = 0
        self._save_began = 0.0
        self._cadence = Cadence(job.spec.safety.save_steps, job.spec.safety.save_seconds, 0, 0.0)
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
        self.phase(Phase.FIRST_STEP)
        self._channel.settle(_SETTLE_SECONDS)
        self._control.begin_training()

    # --- the step boundary ------------------------------------------------------------------------------------------

    def before_step(self, step: int) -> None:
        self._held_out.before_step(self.saved_step)
        self._drill.before_step(step)

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
        self._held_out.after_step(step, total_steps, score)
        # After the last step and its evaluation there is nothing left to stop: writing the result is all that remains.
        left = step < total_steps or self._evaluations.owed(step, total_steps)
        stop = self._control.stop if left else None
        finish = stop is None and self._evaluations.enough
        now = self._clock()
        save = self._control.take_save() or self._cadence.due(step, now) or (stop is not None and stop.save)
        save = save or finish or self._evaluations.kept_step == step
        if finish:
            self._held_out.say_if_enough(step, total_steps)
        if save:
            self._save_began = now
            self.phase(Phase.CHECKPOINT)
        return Directive(save=save, stop=stop is not None, finish=finish)

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
        return self._held_out.best(self._voice.step)

    # --- saving -----------------------------------------------------------------------------------------------------

    def publish(self, staged: Path, progress: Progress) -> bool:
        manifest = self._manifest(progress)
        final = self.run.checkpoint(progress.step)
        disk = self._drill.disk_for(progress.step, self._disk)
        try:
            if make_room(final, manifest, disk):
                discard(staged)
                size = 0
            else:
                size, _ = commit(staged, final, manifest, disk)
        except OSError as error:
            self._failed(progress, error)
            return False
        end = self._clock()
        self._cadence.saved(self._save_began, end)
        self._failures = 0
        self.saved_step = progress.step
        self._drill.after_save(progress.step, final)
        self._channel.send(
            CheckpointSaved(
                name=final.name,
                step=progress.step,
                samples_seen=progress.samples_seen,
                order=progress.order,
                seconds=end - self._save_began,
                bytes=size,
                loss=progress.loss,
            )
        )
        self._channel.settle(_SETTLE_SECONDS)
        prune(self.run, progress.step, self.job.spec.safety.keep_checkpoints, best=self.job.spec.train.keep_best)
        self.phase(Phase.TRAIN)
        return True

    def save_failed(self, progress: Progress, error: BaseException) -> None:
        if not is_disk_trouble(error) and not isinstance(error, OSError):
            raise error  # out of memory while saving, for one, is not the disk's fault
        for left in self.staging.iterdir():
            discard(left)
        self._failed(progress, error)

    def _failed(self, progress: Progress, error: BaseException) -> None:
        self._cadence.failed(self._save_began, self._clock())
        self._failures += 1
        text = redact(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
        self._channel.send(CheckpointFailed(progress.step, DiskFullError.default_code, text, self._failures))
        self.phase(Phase.TRAIN)

    def finish(self, result: TrainResult) -> TrainResult:
        """Moves the result from staging to its place in the run directory, whole or not at all."""
        self.phase(Phase.FINISH)
        final = self.run.adapter
        old = final.with_name(f"{final.name}.old{PARTIAL}")
        manifest = self._manifest(
            Progress(result.step, self._total_steps, result.samples_seen, result.order, result.final_loss)
        )
        best = self._evaluations.kept_step
        manifest = msgspec.structs.replace(manifest, best_step=best)
        discard(old)
        if final.exists():
            rename(final, old, self._disk)  # of an attempt that died between this and its Done
        _, files = commit(Path(result.adapter), final, manifest, self._disk)
        discard(old)
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
