"""A session that keeps what a backend says, and commits real checkpoints as the runner does: real files, no runner."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import msgspec
import torch

from backpropagate_backends.base import Directive, HeldOut, Score, Write
from backpropagate_protocol.durable import commit_dir, discard, verify_dir
from backpropagate_protocol.jobs import TrainJob
from backpropagate_protocol.messages import Phase, Progress, Started
from backpropagate_protocol.prepared import Prepared, PreparedWriter
from backpropagate_protocol.rundir import MANIFEST, Manifest, checkpoint_name
from backpropagate_protocol.spec import DataSpec, LoraSpec, ModelSpec, RunSpec, TrainSpec, spec_digest


def commit_again(checkpoint: Path, **changes: object) -> None:
    """Makes the files of a checkpoint, whatever they are now, good again, and its manifest say something else."""
    manifest = msgspec.json.decode((checkpoint / MANIFEST).read_bytes(), type=Manifest)
    changed = msgspec.structs.replace(manifest, **changes)
    staged = checkpoint.with_name("staged")
    checkpoint.rename(staged)
    (staged / MANIFEST).unlink()
    commit_dir(staged, checkpoint, lambda files: msgspec.json.encode(msgspec.structs.replace(changed, files=files)))


class Killed(Exception):
    """Stands for a sudden end: what was not saved by then is lost with the objects."""


class KeepingSession:
    """Saves after the steps in `save_at`, stops after `stop_at`, and ends suddenly before `kill_before`."""

    def __init__(
        self,
        job: TrainJob,
        folder: Path,
        data: Prepared,
        *,
        save_at: Iterable[int] = (),
        stop_at: int | None = None,
        kill_before: int | None = None,
        on_step: Callable[[int], None] = lambda step: None,
        held_out: Prepared | None = None,
        score_at: Iterable[int] = (),
        best_step: int | None = None,
        finish_at: int | None = None,
        short_at: Iterable[tuple[str, int, int]] = (),
    ) -> None:
        """`short_at`: shortages of memory: the place, the step, and at which visit to it."""
        self.job = job
        self.resume: Manifest | None = verify_dir(Path(job.resume_from)) if job.resume_from else None
        self.staging = folder / "staging"
        discard(self.staging)
        self.staging.mkdir(parents=True)
        self.checkpoints = folder / "checkpoints"
        self.data = data
        self.phases: list[Phase] = []
        self.notices: list[str] = []
        self.begun: Started | None = None
        self.progress: list[Progress] = []
        self.failures: list[BaseException] = []
        self._save_at, self._stop_at, self._kill_before = set(save_at), stop_at, kill_before
        self._on_step = on_step
        self.scores: dict[int, HeldOut] = {}
        self.held_out, self._score_at = held_out, set(score_at)
        self._best_step, self._finish_at = best_step, finish_at
        self._step = 0
        self._short_at, self._smaller = set(short_at), list(job.smaller)
        self._entered: Counter[tuple[str, int]] = Counter()
        self.sizes: list[tuple[int, int]] = []
        self.rehearsals: list[int] = []

    def phase(self, phase: Phase, done: int = 0, total: int = 0, detail: str = "") -> None:
        self.phases.append(phase)

    def notice(self, text: str, level: str = "info") -> None:
        self.notices.append(text)

    def started(self, started: Started) -> None:
        self.begun = started

    def before_step(self, step: int) -> None:
        self._step = step
        if step == self._kill_before:
            raise Killed
        self._on_step(step)

    def step_done(self, progress: Progress, score: Score | None = None) -> Directive:
        self.progress.append(progress)
        if progress.step in self._score_at:
            self._score(progress.step, score)
        stop = progress.step == self._stop_at
        save = stop or progress.step in self._save_at
        return Directive(save=save, stop=stop, finish=progress.step == self._finish_at)

    def _score(self, step: int, score: Score | None) -> None:
        assert self.held_out is not None
        assert score is not None
        found = score(self.held_out, lambda done, total: True)
        assert found is not None
        self.scores[step] = found

    def within(self, place: str) -> None:
        self._entered[place, self._step] += 1
        if (place, self._step, self._entered[place, self._step]) in self._short_at:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def smaller(self, error: BaseException, others: int = 0) -> int | None:
        assert isinstance(error, torch.OutOfMemoryError)
        return self._smaller[0] if self._smaller else None

    def shrunk(self) -> None:
        self.sizes.append((self._step, self._smaller.pop(0)))

    def taken_by_others(self, memory: int) -> None:
        return

    def rehearsal(self) -> AbstractContextManager[None]:
        return nullcontext()

    def rehearsed(self, tokens: int, seconds: float, memory: int = 0) -> None:
        self.rehearsals.append(tokens)

    def owes(self, total_steps: int) -> bool:
        return self.resume is not None and self.resume.step in self._score_at

    def make_up(self, total_steps: int, score: Score) -> None:
        if self.resume is not None and self.owes(total_steps):
            self._score(self.resume.step, score)

    def ended(self, total_steps: int) -> bool:
        return self.resume is not None and self.resume.step >= total_steps

    def best(self) -> Path | None:
        return None if self._best_step is None else self.checkpoint(self._best_step)

    def keep(self, staged: Path, progress: Progress, write: Write, *, copied: bool = True) -> None:
        try:
            staged.mkdir(parents=True, exist_ok=True)
            write(staged)
        except OSError as error:
            self.save_failed(progress, error)
            return
        manifest = Manifest(
            run_id=self.job.spec.run_id,
            step=progress.step,
            total_steps=progress.total_steps,
            samples_seen=progress.samples_seen,
            order=progress.order,
            micro_batch=self.job.micro_batch,
            accumulation=self.job.accumulation,
            data_digest=self.data.manifest.digest,
            spec_digest=spec_digest(self.job.spec),
            backend=self.job.spec.backend,
            loss=progress.loss,
            optimizer=self.begun.optimizer if self.begun else "",
            precision=self.begun.precision if self.begun else "",
            model_revision=self.begun.model_revision if self.begun else "",
        )
        final = self.checkpoints / checkpoint_name(progress.step)
        shutil.rmtree(final, ignore_errors=True)
        commit_dir(staged, final, lambda files: msgspec.json.encode(msgspec.structs.replace(manifest, files=files)))

    def save_failed(self, progress: Progress, error: BaseException) -> None:
        for left in self.staging.iterdir():
            discard(left)
        self.failures.append(error)

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / checkpoint_name(step)


def make_job(
    model: Path,
    *,
    micro_batch: int = 4,
    accumulation: int = 1,
    resume_from: Path | None = None,
    gradient_checkpointing: bool | None = None,
    steps: int | None = 12,
    epochs: float | None = None,
    seed: int = 7,
    four_bit: bool | None = None,
    dtype: str = "auto",
    optim: str = "auto",
    dropout: float = 0.0,
    backend: str = "cpu",
) -> TrainJob:
    spec = RunSpec(
        run_id="run",
        created="2026-01-01T00:00:00Z",
        backend=backend,
        output=str(model.parent),
        model=ModelSpec(name="tiny", path=str(model), load_in_4bit=four_bit, dtype=dtype),
        data=DataSpec(source="rows"),
        lora=LoraSpec(r=8, alpha=16, dropout=dropout),
        train=TrainSpec(
            steps=steps,
            epochs=epochs,
            effective_batch=micro_batch * accumulation,
            learning_rate=2e-3,
            warmup_steps=2,
            seed=seed,
            optim=optim,
        ),
    )
    return TrainJob(
        spec=spec,
        run_dir=str(model.parent / "run"),
        attempt=1,
        micro_batch=micro_batch,
        accumulation=accumulation,
        gradient_checkpointing=gradient_checkpointing,
        resume_from=str(resume_from) if resume_from else None,
    )


def make_data(folder: Path, rows: int = 30, vocabulary: int = 400) -> Prepared:
    """Rows of 6 to 40 tokens, of which a varying part carries loss: equal lengths would prove nothing."""
    writer = PreparedWriter(folder)
    for row in range(rows):
        length = 6 + (row * 17) % 35
        ids = [(row * 31 + at * at * 7 + 3) % vocabulary for at in range(length)]
        prompt = 2 + (row * 5) % (length - 3)
        writer.add(ids, [0] * prompt + [1] * (length - prompt))
    writer.commit(key="test", skipped=0, truncated=0, format="messages", source_digest="test")
    return Prepared(folder)
